"""`verify`: every byte of a store against its ledger, and with `deep` every value against its invariants.

No teacher, no data set, no torch. Damage is listed, not raised, so that one run names all of it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from kdcache.errors import CorruptStoreError, HostileStoreError
from kdcache.progress import Progress
from kdcache.specs import StoreManifest
from kdcache.store.block_reader import (
    check_block,
    check_static,
    read_block_array,
    read_commit,
    read_static,
    stated_records,
)
from kdcache.store.blocks import BlockId
from kdcache.store.files import PARTIAL, Root, repair_hint, walk_files
from kdcache.store.layout import ArrayLayout, block_arrays, layout_of
from kdcache.store.ledger import Digests, root_digest
from kdcache.store.manifest_file import ROOT_FILE, check_metadata, group_folders, read_manifest
from kdcache.store.roots import root_of
from kdcache.store.values import mass_tolerance, problems_of

MAX_PROBLEMS = 1000
REMOTE_THREADS = 4  # blocks on their way; each is a handful of requests
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        array: the array, or the file for anything else.
        block: block number within the view, or None.
        view: view number, or None.
        rows: half-open range of rows (start, stop), or None.
        what: what is wrong, found and expected.
        repair: what to type.
        error: name of the error class that reading it raises.
    """

    array: str
    what: str
    repair: str
    error: str = "CorruptStoreError"
    block: int | None = None
    view: int | None = None
    rows: tuple[int, int] | None = None

    def __str__(self) -> str:
        place = (
            "" if self.rows is None else f" view {self.view} block {self.block} rows {self.rows[0]}..{self.rows[1] - 1}"
        )
        return f"{self.array}{place}: {self.what}"


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify_store` found.

    Attributes:
        location: the store.
        complete: whether it is sealed.
        deep: whether values were checked, too.
        blocks_checked: blocks whose bytes match the ledger.
        blocks_total: blocks the store has or shall have.
        problems: all damage found; the search ends at `MAX_PROBLEMS`, which no store worth repairing reaches.
        root_digest: of a sealed store.
    """

    location: str
    complete: bool
    deep: bool
    blocks_checked: int
    blocks_total: int
    problems: tuple[Problem, ...]
    root_digest: str = ""

    @property
    def exit_code(self) -> int:
        """4 damaged, 3 unfinished, 0 sound."""
        return 4 if self.problems else 0 if self.complete else 3


Committed = tuple[BlockId, str]  # a block and its ledger digest
CheckBlocks = Callable[[Root, Iterable[Committed]], Iterator[list[Problem]]]


def verify_store(location: str | Path, *, deep: bool = False, check_blocks: CheckBlocks | None = None) -> VerifyReport:
    """Check structure, metadata, ledger and every byte of a store, one block in memory at a time.

    Args:
        location: local folder or URL; a remote store is streamed, nothing of it is kept.
        deep: also check values: indices below K and unique, log p descending and at most 0, mass 1, labels in range.
        check_blocks: what is wrong with each committed block, in their order; None: this process looks.

    Raises:
        NotFoundError, IncompatibleError: there is no store of a format this program reads.
        ResourceError: no permission.
    """
    root = root_of(location)
    try:
        manifest = read_manifest(root)
    except CorruptStoreError as error:
        problem = _problem(ROOT_FILE, error, root)
        return VerifyReport(
            location=str(root), complete=False, deep=deep, blocks_checked=0, blocks_total=0, problems=(problem,)
        )
    layout = layout_of(manifest)
    digests, ledger_problems = _digests(root, manifest, layout)
    begun = manifest.complete or next(digests.committed(), None) is not None
    problems = list(_structure_problems(root, layout, sealed=manifest.complete, begun=begun))
    problems += ledger_problems
    if manifest.complete and not ledger_problems:
        problems += islice(unexpected_files(root, layout), MAX_PROBLEMS)
        problems += _static_problems(root, manifest, layout, digests.static)
    checked = 0
    if check_blocks is None:
        each = block_problems(root, manifest, digests.committed(), deep=deep)
    else:
        each = check_blocks(root, digests.committed())
    blocks = manifest.num_views * manifest.blocks_per_view
    with Progress(blocks, "blocks", label="verify", keep=False) as progress:
        for found in each:
            checked += not found
            problems += found
            progress.update(1)
            if len(problems) >= MAX_PROBLEMS:
                break
    return VerifyReport(
        location=str(root),
        complete=manifest.complete,
        deep=deep,
        blocks_checked=checked,
        blocks_total=blocks,
        problems=tuple(problems),
        root_digest=manifest.root_digest,
    )


def block_problems(
    root: Root, manifest: StoreManifest, blocks: Iterable[Committed], *, deep: bool
) -> Iterator[list[Problem]]:
    """What is wrong with each block, in their order; of a remote store a few are on their way at once."""
    layout = layout_of(manifest)

    def check(committed: Committed) -> list[Problem]:
        return list(_block_problems(root, manifest, layout, *committed, deep=deep))

    return _in_order(check, blocks, threads=1 if isinstance(root, Path) else REMOTE_THREADS)


def _in_order(check: Callable[[T], R], items: Iterable[T], *, threads: int) -> Iterator[R]:
    """Results in the order of the items, a few checked at a time: over a network the waits overlap."""
    if threads == 1:
        yield from map(check, items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="kdcache-verify") as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(check, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _digests(root: Root, manifest: StoreManifest, layout: dict[str, ArrayLayout]) -> tuple[Digests, list[Problem]]:
    """What the ledger says, and what is wrong with it."""
    if not manifest.complete:
        return Digests(manifest, records=stated_records(root, manifest, layout)), []
    problems = []
    try:
        commit = read_commit(root, layout["commit"])
    except CorruptStoreError as error:
        problems.append(_problem("commit", error, root))
        commit = read_commit(root, layout["commit"], lenient=True)
        if commit.shape != layout["commit"].shape:
            return Digests(manifest), problems
    found = root_digest(manifest, commit)
    if found != manifest.root_digest:
        what = f"root digest of manifest and ledger is {found}, expected {manifest.root_digest}: one of them was edited"
        problems.append(Problem(array=ROOT_FILE, what=what, repair=repair_hint(root)))
    return Digests(manifest, commit=commit), problems


def _structure_problems(root: Root, layout: dict[str, ArrayLayout], *, sealed: bool, begun: bool) -> Iterator[Problem]:
    for array in layout.values():
        if not sealed and array.kind == "commit":
            continue
        # A dump that stopped before its first block may not have come to this array; continuing it writes the file.
        if isinstance(root, Path) and not begun and not os.path.lexists(root / array.name / ROOT_FILE):
            continue
        try:
            check_metadata(root, array)
        except CorruptStoreError as error:
            yield _problem(array.name, error, root)


def unexpected_files(root: Root, layout: Mapping[str, ArrayLayout]) -> Iterator[Problem]:
    """Files that are no part of a store of this layout; its work folder does not count."""
    known = {ROOT_FILE, *(f"{group}/{ROOT_FILE}" for group in group_folders(layout))}
    known |= {f"{name}/{ROOT_FILE}" for name in layout}
    try:
        for relative, size in walk_files(root):
            if relative not in known and not _is_chunk(relative, layout):
                kind = "left by a killed writer" if relative.endswith(PARTIAL) else "not part of the store"
                what = f"unexpected file of {size} bytes, {kind}"
                yield Problem(array=relative, what=what, repair=f"remove {root / relative}")
    except HostileStoreError as error:
        yield _problem(str(root), error, root)


def _is_chunk(relative: str, layout: Mapping[str, ArrayLayout]) -> bool:
    """Whether a path is a chunk of some array's grid; by arithmetic, because a hostile grid is too long to list."""
    name, _, position = relative.partition("/c/")
    array, numbers = layout.get(name), position.split("/")
    if array is None or len(numbers) != len(array.shape):
        return False
    steps = zip(numbers, array.shape, array.chunk_shape, strict=True)
    return all(
        number.isascii() and number.isdigit() and str(int(number)) == number and int(number) < -(-size // chunk)
        for number, size, chunk in steps
        if len(number) < 20
    ) and all(len(number) < 20 for number in numbers)


def _static_problems(root: Root, manifest: StoreManifest, layout: dict[str, ArrayLayout], static: str) -> list[Problem]:
    try:
        check_static(root, manifest, read_static(root, layout), static)
    except CorruptStoreError as error:
        return [_problem("store-level arrays", error, root)]
    return []


def _block_problems(
    root: Root, manifest: StoreManifest, layout: dict[str, ArrayLayout], block: BlockId, sha256: str, *, deep: bool
) -> Iterator[Problem]:
    sound = True
    columns = {}
    for array in block_arrays(layout, block.view):
        try:
            columns[array.name] = read_block_array(root, array, block)
        except CorruptStoreError as error:
            sound = False
            yield _problem(array.name, error, root, block)
    if not sound:
        return
    try:
        check_block(root, manifest, block, columns, sha256)
    except CorruptStoreError as error:
        yield _problem(f"one of {', '.join(columns)}", error, root, block)
        return
    if deep:
        tolerance = mass_tolerance(manifest.codec.precision)
        for name, rows, what in problems_of(manifest, block, columns, mass_tolerance=tolerance):
            first, count = block.start + int(rows[0]), len(rows)
            text = f"{what} in {count} rows, the first is {first}; the bytes are as committed: they were written wrong"
            yield Problem(
                array=name, what=text, repair="dump a new store", block=block.block, view=block.view,
                rows=(first, block.start + int(rows[-1]) + 1), error="CorruptStoreError",
            )  # fmt: skip


def _problem(array: str, error: CorruptStoreError, root: Root, block: BlockId | None = None) -> Problem:
    return Problem(
        array=array,
        what=error.message,
        repair=error.hint or repair_hint(root),
        error=type(error).__name__,
        block=None if block is None else block.block,
        view=None if block is None else block.view,
        rows=None if block is None else (block.start, block.stop),
    )
