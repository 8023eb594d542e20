"""Opening a store and reading its views, verified against the ledger before a single number is handed out.

Opening reads metadata and the ledger only. A view is decoded once per process, whole, and stays resident. No torch, and
no zarr: the chunks of format 1 are decoded by `chunks`, which believes nothing.
"""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdcache.cache_folder import cache_folder
from kdcache.errors import ConfigError, CorruptStoreError, IncompatibleError, UnfinishedStoreError
from kdcache.specs import StoreManifest
from kdcache.store.block_reader import (
    check_block,
    check_static,
    read_block,
    read_commit,
    read_static,
    stated_records,
)
from kdcache.store.blocks import BlockId, block_at, blocks_of_view
from kdcache.store.chunks import pack_plain
from kdcache.store.files import repair_hint
from kdcache.store.layout import layout_of
from kdcache.store.ledger import Digests, root_digest, static_digest
from kdcache.store.location import Location
from kdcache.store.manifest_file import check_metadata, read_manifest
from kdcache.store.mirror import Mirror
from kdcache.store.resident import (
    LoadedView,
    ViewColumns,
    free_memory,
    load_view,
    load_view_mapped,
    refuse_bomb,
    view_bytes,
)
from kdcache.store.roots import root_of

T = TypeVar("T")
__all__ = ["StoreReader", "ViewColumns", "open_reader", "read_manifest"]

# Views that a reader of this process holds, by (place, root digest, view): verified once per process and store.
_LOADED: weakref.WeakValueDictionary[tuple[str, str, int], LoadedView] = weakref.WeakValueDictionary()


def _maker(manifest: StoreManifest) -> str:
    """The command that writes such a store: dump-teacher, derive, merge, join."""
    command = manifest.creator.get("command")
    return command if command in ("derive", "merge", "join") else "dump-teacher"


def open_reader(
    location: str | Path | Location,
    *,
    allow_unfinished: bool = False,
    ram_budget: int | None = None,
    cache: str | Path | None = None,
    threads: int | None = None,
    copy_to: Path | None = None,
) -> StoreReader:
    """Open a store: manifest, array metadata, ledger and root digest are checked; no array is decoded.

    Args:
        location: local folder or URL. Of a remote store two objects are read now; views come when they are used, into
            `cache`, and stay there for the next process.
        allow_unfinished: open a store that is not sealed; only views whose blocks are all committed can be read.
        ram_budget: bytes a view may take in RAM; a larger one goes to a memory map. None: half of what is free.
        cache: folder of local copies and memory-mapped caches; None: KDCACHE_CACHE or the user's cache folder.
        threads: decoding threads; None: one per CPU this process may use.
        copy_to: folder that receives the files as they are used, instead of the cache (for `pull`).

    Raises:
        NotFoundError, IncompatibleError: not a store, or a store of a newer format.
        UnfinishedStoreError: not sealed; the hint continues it.
        CorruptStoreError: metadata or ledger are damaged; HostileStoreError where they ask for what no store has.
    """
    root = root_of(location) if copy_to is None else Location.at(location)
    manifest = read_manifest(root)
    layout = layout_of(manifest)
    if not manifest.complete:
        records = stated_records(root, manifest, layout)
        if not allow_unfinished:
            total = manifest.num_views * manifest.blocks_per_view
            raise UnfinishedStoreError(
                f"{root}: unfinished, {len(records)} of {total} blocks are committed; expected a sealed store",
                hint=f"give the {_maker(manifest)} command that made {root} again: it continues",
            )
        if not isinstance(root, Path):
            raise UnfinishedStoreError(
                f"{root}: unfinished; a remote store is read when it is sealed", hint="seal it where it is written"
            )
        digests = Digests(manifest, records=records)
        return StoreReader(root, manifest, digests, ram_budget=ram_budget, cache=cache, threads=threads)
    if isinstance(root, Path):  # of a remote store no array metadata is used: it follows from the manifest
        for array in layout.values():
            check_metadata(root, array)
    commit = read_commit(root, layout["commit"])
    found = root_digest(manifest, commit)
    if found != manifest.root_digest:
        raise CorruptStoreError(
            f"{root}: manifest and ledger have root digest {found[:16]}..., the store says"
            f" {manifest.root_digest[:16]}...: the manifest or the ledger was edited",
            hint=repair_hint(root),
        )
    digests = Digests(manifest, commit=commit)
    if isinstance(root, Path):
        return StoreReader(root, manifest, digests, ram_budget=ram_budget, cache=cache, threads=threads)
    if copy_to is not None:
        mirror = Mirror(root, copy_to, layout)
    else:
        mirror = Mirror.in_cache(root, manifest, layout, Path(cache) if cache is not None else cache_folder())
    return StoreReader(
        mirror.root, manifest, digests, ram_budget=ram_budget, cache=cache, threads=threads, mirror=mirror
    )


class StoreReader:
    """An open store; get one from `open_reader`. Safe to share between threads.

    Attributes:
        manifest: what the store says about itself.
        location: its folder or URL, without credentials.
    """

    def __init__(
        self,
        root: Path,
        manifest: StoreManifest,
        digests: Digests,
        *,
        ram_budget: int | None,
        cache: str | Path | None,
        threads: int | None,
        mirror: Mirror | None = None,
    ) -> None:
        self.manifest = manifest
        self.location = str(root if mirror is None else mirror.source)
        self._mirror = mirror
        self._root = root
        self._layout = layout_of(manifest)
        self._digests = digests
        self._static: dict[str, NDArray[Any]] | None = None
        self._ram_budget = ram_budget
        self._cache = Path(cache) if cache is not None else cache_folder()
        self._threads = threads if threads is not None else len(os.sched_getaffinity(0))
        self._rows: dict[str, NDArray[Any]] | None = None
        self._current: LoadedView | None = None
        self._next: tuple[int, Future[LoadedView]] | None = None
        self._lock = threading.RLock()
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kdcache-prefetch")

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) int64 ground truth, verified on first use."""
        return self.row_array("label").astype(np.int64)

    @property
    def row_digests(self) -> NDArray[np.uint16]:
        """(N,) uint16 digests of the raw examples, verified on first use."""
        return self.row_array("row_digest")

    def row_array(self, name: str) -> NDArray[Any]:
        """An array without a view axis (N, ...), verified on first use.

        Raises:
            IncompatibleError: the store has no such array.
        """
        with self._lock:
            if self._rows is None and self._current is None:
                self.view(0)  # most readers want view 0 next: one decode instead of two
            if self._rows is None:
                self._rows = self._read_rows()
            if name not in self._rows:
                raise self._absent(name)
            return self._rows[name]

    def view(self, view: int) -> ViewColumns:
        """The columns of one view: every block checked against the ledger, decoded once, then resident (one view).

        Raises:
            ConfigError: no such view.
            UnfinishedStoreError: blocks of it are not committed yet.
            CorruptStoreError, ChecksumError: damage; the message names array, view, block and rows.
            ResourceError: neither memory nor cache space for it.
        """
        with self._lock:
            if self._current is None or self._current.columns.view != view:
                self._check_view(view)
                self._current = None  # before loading the next one: two resident views would double the memory
                self._current = self._take(view)
                if self._current.rows and self._rows is None:
                    self._rows = dict(self._current.rows)
            return self._current.columns

    def prefetch(self, view: int) -> None:
        """Begin to load a view in the background; the next `view(view)` takes it. One at a time; a repeat is free."""
        with self._lock:
            self._check_view(view)
            current = self._current
            if (current is not None and current.columns.view == view) or (self._next and self._next[0] == view):
                return
            self._next = (view, self._background.submit(self._load, view))

    def release(self) -> None:
        """Forget what is resident or prefetched: what was handed out stays valid, and the next `view` loads again."""
        with self._lock:
            self._current = None
            self._next = None

    def blocks(self, view: int) -> Iterator[tuple[BlockId, dict[str, NDArray[Any]]]]:
        """Stream a view block by block, each verified; memory stays at one block. Errors as `view`."""
        self._check_view(view)
        if self._mirror is not None:
            self._mirror.fetch_blocks(blocks_of_view(self.manifest, view))
        for block in blocks_of_view(self.manifest, view):
            yield block, self.block(view, block.block)

    def block(self, view: int, block: int) -> dict[str, NDArray[Any]]:
        """The columns of one block of a view, verified, not kept; view 0 has `label` and `row_digest` too.

        Raises:
            ConfigError: no such view or block. Damage and missing blocks as `view`.
        """
        self._check_view(view)
        if not 0 <= block < self.manifest.blocks_per_view:
            raise ConfigError(f"{self.location}: block {block}; expected 0 to {self.manifest.blocks_per_view - 1}")
        wanted = block_at(self.manifest, view, block)

        def read() -> dict[str, NDArray[Any]]:
            columns = read_block(self._root, self.manifest, self._layout, wanted)
            check_block(self._root, self.manifest, wanted, columns, self.digest(wanted))
            return columns

        return self._with_blocks([wanted], read)

    def digest(self, block: BlockId) -> str:
        """Hex sha256 of a block, as the ledger says; "" when it is not committed."""
        return self._digests.of(block) or ""

    def has_view(self, view: int) -> bool:
        """Whether every block of a view is committed: of a sealed store all are."""
        return self.manifest.complete or all(map(self.digest, blocks_of_view(self.manifest, view)))

    def view_digest(self, view: int) -> str:
        """Hex sha256 over the ledger digests of a view's blocks: names its bytes, also before the store is sealed."""
        return hashlib.sha256("".join(map(self.digest, blocks_of_view(self.manifest, view))).encode()).hexdigest()

    def static_digest(self) -> str:
        """Hex sha256 of the store-level arrays as the ledger says; of a growing store of what was read, or ""."""
        if self._digests.static or self._static is None:
            return self._digests.static
        return static_digest(self.manifest.store_id, self._static)

    def commit_chunk(self) -> bytes:
        """The bytes of the file of `commit` (1 + V * blocks, 32), checked when the store was opened."""
        return pack_plain(self._digests.commit)

    @property
    def folder(self) -> Path:
        """The local folder whose files are read: the store itself, or the local copy of a remote one."""
        return self._root

    @property
    def bytes_fetched(self) -> int:
        """Bytes of a remote store that this reader has brought here."""
        return 0 if self._mirror is None else self._mirror.bytes_fetched

    def static(self, name: str) -> NDArray[Any]:
        """A store-level array such as class_weight (K, D) float32, verified on first use.

        Raises:
            IncompatibleError: the store has no such array.
        """
        with self._lock:
            if name not in self._layout or self._layout[name].kind != "static":
                raise self._absent(name)
            if self._static is None:
                if self._mirror is not None:
                    self._mirror.fetch_static()
                arrays = read_static(self._root, self._layout)
                if self._digests.static:
                    check_static(self._root, self.manifest, arrays, self._digests.static)
                self._static = arrays
            return self._static[name]

    def close(self) -> None:
        """Drop what is resident and end the background thread; the reader can still be used."""
        with self._lock:
            self._next = None
            self._current = None
            self._background.shutdown(wait=True)
            self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kdcache-prefetch")

    def _check_view(self, view: int) -> None:
        if not 0 <= view < self.manifest.num_views:
            raise ConfigError(f"{self.location}: view {view}; expected 0 to {self.manifest.num_views - 1}")
        if self.manifest.complete:
            return
        missing = [block for block in blocks_of_view(self.manifest, view) if self._digests.of(block) is None]
        if missing:
            raise UnfinishedStoreError(
                f"{self.location}: {len(missing)} blocks of view {view} are not written yet, the first is {missing[0]}",
                hint=f"give the {_maker(self.manifest)} command that made it again: it continues",
            )

    def _take(self, view: int) -> LoadedView:
        waiting, self._next = self._next, None
        if waiting is not None and waiting[0] == view:
            return waiting[1].result()
        return self._load(view)

    def _load(self, view: int) -> LoadedView:
        manifest, layout = self.manifest, self._layout
        key = (str(self._root.resolve()), manifest.root_digest, view)
        loaded = _LOADED.get(key) if manifest.complete else None
        if loaded is not None:
            return loaded
        budget = self._ram_budget if self._ram_budget is not None else free_memory() // 2
        mapped = manifest.complete and view_bytes(manifest, layout, view) > budget

        def load() -> LoadedView:
            refuse_bomb(self._root, manifest, layout, view)
            if mapped:
                return load_view_mapped(self._root, manifest, layout, view, self.digest, cache=self._cache)
            return load_view(self._root, manifest, layout, view, self.digest, threads=self._threads)

        loaded = self._with_blocks(list(blocks_of_view(manifest, view)), load)
        if manifest.complete:
            _LOADED[key] = loaded
        return loaded

    def _with_blocks(self, blocks: Sequence[BlockId], read: Callable[[], T]) -> T:
        """Read with the files of blocks at hand; of a remote store, bad ones are fetched once more before giving up."""
        if self._mirror is None:
            return read()
        self._mirror.fetch_blocks(blocks)
        try:
            return read()
        except CorruptStoreError:
            self._mirror.forget_blocks(blocks)
        self._mirror.fetch_blocks(blocks)
        try:
            return read()
        except CorruptStoreError as error:
            raise self._mirror.named_by_source(error) from None

    def _read_rows(self) -> dict[str, NDArray[Any]]:
        """`label`, `row_digest` and the like: part of view 0's blocks, so all of these are decoded, one at a time."""
        names = [array.name for array in self._layout.values() if array.kind == "rows"]
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
        for _, columns in self.blocks(0):
            for name in names:
                parts[name].append(columns[name])
        return {name: np.concatenate(pieces) for name, pieces in parts.items()}

    def _absent(self, name: str) -> IncompatibleError:
        have = ", ".join(self._layout)
        return IncompatibleError(
            f"{self.location}: the store has no {name!r}; it holds {have}",
            hint="dump it again with a teacher that offers it, or choose a method that does not need it",
        )
