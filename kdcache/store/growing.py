"""A store that others are still writing: wait for blocks to be committed, and never take one that is not.

A block counts when its record lies in the ledger; the reader then compares what it decodes to with that record, as in a
sealed store. Only folders are followed: at a URL a store appears when it is whole. What waits, and what for, is
`distill`'s business.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from kdcache.errors import ConfigError, CorruptStoreError, IncompatibleError, ResourceError, UnfinishedStoreError
from kdcache.progress import note
from kdcache.specs import StoreManifest
from kdcache.store.block_reader import read_commit
from kdcache.store.blocks import block_at, blocks_of_view
from kdcache.store.find import is_beginning
from kdcache.store.holder import STALE_SECONDS, Holder, is_gone, is_here, read_holder
from kdcache.store.layout import layout_of
from kdcache.store.lease import LEASE_FILE
from kdcache.store.ledger import Digests, Record, read_record, recorded_places, records_of_commit
from kdcache.store.manifest_file import ROOT_FILE, read_manifest
from kdcache.store.reader import StoreReader, open_reader
from kdcache.store.resident import free_memory, view_bytes
from kdcache.store.roots import root_of

LOOK_SECONDS = 0.5
LONGEST_LOOK_SECONDS = 30.0  # between two looks at a damaged view: each decodes the view
AGAIN = "give the dump-teacher command that made it again: it continues; then this one with --resume"


class GrowingStore:
    """An unfinished store, watched from outside; nothing is written to it. Get one from `find_growing`.

    Attributes:
        root: its folder.
        manifest: what it says about itself while it is unfinished; views may come, never other ones.
    """

    def __init__(self, root: Path, manifest: StoreManifest, *, timeout: float) -> None:
        self.root = root
        self.manifest = manifest
        self._watch = _Watch(root, timeout)
        self._records: dict[tuple[int, int], Record] = {}
        # of an earlier sealing with fewer views, whose records are gone
        commit = read_commit(root, layout_of(manifest)["commit"], lenient=True)
        self._before = records_of_commit(manifest, commit)
        self._sealed: StoreReader | None = None
        self._root_file: tuple[int, int, int] | None = None  # the first look reads it

    @property
    def sealed(self) -> StoreReader | None:
        """The store once `refresh` or a wait has found it sealed; its ledger was compared with its root digest."""
        return self._sealed

    def reader(self) -> StoreReader:
        """A reader of the views that are committed when they are asked for; UnfinishedStoreError for the others.

        Raises:
            ResourceError: a view does not fit into memory (memory maps belong to sealed stores).
        """
        layout, half = layout_of(self.manifest), free_memory() // 2
        largest = view_bytes(self.manifest, layout, 0)
        if largest > half:
            raise ResourceError(
                f"{self.root}: a view takes {largest:,} bytes, {half:,} may be used; expected a view of a growing "
                "store to fit into memory",
                hint="wait until the store is sealed: it is then read through a memory map",
            )
        digests = Digests(self.manifest, records=_Records(self._record))
        return StoreReader(self.root, self.manifest, digests, ram_budget=None, cache=None, threads=None)

    def has_view(self, view: int) -> bool:
        """Whether every block of a view is committed."""
        return all(self._record((block.view, block.block)) is not None for block in blocks_of_view(self.manifest, view))

    def forget_view(self, view: int) -> None:
        """Ask the ledger again for a view's blocks: their bytes were not what it said."""
        for block in blocks_of_view(self.manifest, view):
            self._records.pop((block.view, block.block), None)

    def refresh(self) -> None:
        """Look whether the store was sealed meanwhile.

        Raises:
            IncompatibleError: another store lies there now, or the same one with more views.
            NotFoundError: it was removed. CorruptStoreError: its manifest or ledger is damaged.
        """
        if self._sealed is not None:
            return
        try:
            signature = _signature(self.root)
        except FileNotFoundError:
            signature = None  # `read_manifest` says what lies there instead
        if signature is not None and signature == self._root_file:
            return
        there = read_manifest(self.root)
        if there.store_id != self.manifest.store_id or there.num_views != self.manifest.num_views:
            now = "another store" if there.store_id != self.manifest.store_id else f"{there.num_views} views"
            raise IncompatibleError(
                f"{self.root}: holds {now} now; this run follows a store of {self.manifest.num_views} views",
                hint="start the run again over what is there, with another --out",
            )
        if there.complete:
            try:
                self._sealed = open_reader(self.root)
            except UnfinishedStoreError:  # opened again this moment, to be repaired: the next look sees how it ends
                return
        self._root_file = signature

    def wait_for_view(self, view: int) -> None:
        """Return when every block of a view is committed.

        Raises:
            UnfinishedStoreError: nobody wrote the store for the timeout. IncompatibleError: as `refresh`.
        """
        self._wait(lambda: self.has_view(view), f"view {view} of {self.manifest.num_views}")

    def wait_for_seal(self) -> StoreReader:
        """The store, sealed; errors as `wait_for_view`."""
        self._wait(lambda: self._sealed is not None, "the store to be sealed")
        assert self._sealed is not None
        return self._sealed

    def wait_for_repair(self, view: int, error: CorruptStoreError, tries: int) -> None:
        """A committed view did not decode to what the ledger says: give its writer time to find that and to repair it.

        Args:
            view: which one.
            error: what was wrong; raised when nobody writes the store, so that nobody will repair it.
            tries: how often this view was found bad in a row.
        """
        self.refresh()
        if self._watch.writer() is None:
            raise error
        if tries == 1:
            note(f"{error.message}; waiting for {self._watch.writer()} to repair it")
        time.sleep(min(LONGEST_LOOK_SECONDS, 2.0 ** (tries - 1)))
        self.forget_view(view)
        self.refresh()

    def progress(self) -> str:
        """How much is committed, in words."""
        total = self.manifest.num_views * self.manifest.blocks_per_view
        committed = total if self._sealed else len(recorded_places(self.root) | self._before.keys())
        return f"{committed} of {total} blocks are committed"

    def _record(self, place: tuple[int, int]) -> Record | None:
        """What the ledger says of a block; once seen it stays, so that a view is checked against one state of it."""
        record = self._records.get(place)
        if record is None:
            block = block_at(self.manifest, *place)
            sealed = self._sealed
            digest = "" if sealed is None else sealed.digest(block)
            record = Record(sha256=digest) if digest else read_record(self.root, self.manifest, block)
            record = record or self._before.get(place)
            if record is not None:
                self._records[place] = record
        return record

    def _wait(self, there: Callable[[], bool], what: str) -> None:
        self.refresh()
        if there():
            return
        note(f"{self.root}: waiting for {what}; {self.progress()}")
        while not there():
            try:
                self._watch.check(what, self.progress)
            except UnfinishedStoreError:
                self.refresh()
                if there():  # its writer sealed it and left between the two looks
                    break
                raise
            time.sleep(LOOK_SECONDS)
            self.refresh()
        self._watch.reset()


def find_growing(location: str | Path, *, timeout: float) -> GrowingStore | None:
    """The unfinished store at a folder, waited for where there is none yet; None when it is sealed.

    Args:
        location: its folder.
        timeout: seconds to wait while nobody writes it.

    Raises:
        ConfigError: a URL that shows no sealed store.
        UnfinishedStoreError: no store came within the timeout.
        IncompatibleError: something else lies there, or a store that `derive`, `merge` or `join` is writing.
    """
    root = root_of(location)
    if not isinstance(root, Path):
        if root.size(ROOT_FILE) is None:
            raise ConfigError(
                f"{root}: expected a folder to follow, found a URL: a store appears there when it is whole",
                hint="dump to a folder that both machines see, follow that one, then kdcache push it",
            )
        return None
    _wait_for_root_file(root, timeout)
    manifest = read_manifest(root)
    if manifest.complete:
        return None
    maker = manifest.creator.get("command")
    if maker in ("derive", "merge", "join"):
        raise IncompatibleError(
            f"{root}: kdcache {maker} is writing this store; only a dump is followed", hint="wait until it is sealed"
        )
    return GrowingStore(root, manifest, timeout=timeout)


def just_sealed(location: str | Path, *, timeout: float) -> GrowingStore:
    """A store that is sealed by now, as one that grows: for who goes on with others that saw it grow.

    Args:
        location, timeout: as `find_growing`.
    """
    root = root_of(location)
    assert isinstance(root, Path)  # others have seen it grow
    return GrowingStore(root, replace(read_manifest(root), complete=False, root_digest=""), timeout=timeout)


def _wait_for_root_file(root: Path, timeout: float) -> None:
    watch, told = _Watch(root, timeout), False
    while not (root / ROOT_FILE).exists() and (not root.exists() or is_beginning(root)):
        if not told:
            note(f"{root}: waiting for a dump-teacher command to begin this store")
            told = True
        watch.check("a store to appear", lambda: "there is none yet")
        time.sleep(LOOK_SECONDS)


class _Watch:
    """Whether someone writes a store, and for how long nobody has.

    A writer on another host shows that it lives by touching its lease; the time between two touches is taken on this
    process's own clock, so that neither clocks must agree nor the folder be writable here.
    """

    def __init__(self, root: Path, timeout: float) -> None:
        self._root = root
        self._timeout = timeout
        self._beat: tuple[str, int] = ("", 0)
        self._beaten = 0.0
        self._alone_since: float | None = None
        self._told = False

    def writer(self) -> Holder | None:
        """The living process that writes the store."""
        holder = read_holder(self._root, LEASE_FILE)
        if holder is None:
            return None
        if is_here(holder):
            return None if is_gone(holder) else holder
        try:
            beat = (holder.token, (self._root / LEASE_FILE).stat().st_mtime_ns)
        except FileNotFoundError:
            return None
        if beat != self._beat:
            self._beat, self._beaten = beat, time.monotonic()
        return holder if time.monotonic() - self._beaten < STALE_SECONDS else None

    def check(self, what: str, progress: Callable[[], str]) -> None:
        """Raise UnfinishedStoreError when nobody has written the store for the timeout; say when that begins."""
        writer, now = self.writer(), time.monotonic()
        if writer is not None:
            if self._told:
                note(f"{self._root}: {writer} writes it now")
            self.reset()
            return
        if self._alone_since is None:
            self._alone_since = now
        alone = now - self._alone_since
        if alone >= self._timeout:
            raise UnfinishedStoreError(
                f"{self._root}: waited for {what}, but nobody has written the store for {self._timeout:g} s;"
                f" {progress()}",
                hint=AGAIN,
            )
        if not self._told and alone >= 2 * LOOK_SECONDS:  # a writer that seals is gone a moment before it is seen
            note(f"{self._root}: nobody writes it; waiting up to {self._timeout:g} s for its dump-teacher command")
            self._told = True

    def reset(self) -> None:
        """The wait is over, or someone writes: the next one begins with all its time."""
        self._alone_since, self._told = None, False


class _Records(Mapping[tuple[int, int], Record]):
    """The ledger of a growing store as the reader asks for it, block by block."""

    def __init__(self, look: Callable[[tuple[int, int]], Record | None]) -> None:
        self._look = look

    def __getitem__(self, place: tuple[int, int]) -> Record:
        record = self._look(place)
        if record is None:
            raise KeyError(place)
        return record

    def __iter__(self) -> Iterator[tuple[int, int]]:
        raise NotImplementedError("a growing ledger is asked for single blocks")

    def __len__(self) -> int:
        raise NotImplementedError("a growing ledger is asked for single blocks")


def _signature(root: Path) -> tuple[int, int, int]:
    """Changes when the root file is replaced."""
    info = os.stat(root / ROOT_FILE)
    return info.st_mtime_ns, info.st_ino, info.st_size
