"""A worker's side of a shared dump: claim a block, write it, commit it; again. It opens, repairs and seals nothing.

Workers join only a store whose coordinator (`StoreWriter.share`) lives, and their work ends when it ends.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from kdcache.errors import LockedError, LostClaimError
from kdcache.store.block_writer import BlockWriter
from kdcache.store.blocks import BlockId
from kdcache.store.claims import Claims
from kdcache.store.files import local_path
from kdcache.store.holder import BEAT_SECONDS
from kdcache.store.ledger import has_record, recorded_places
from kdcache.store.manifest_file import read_manifest
from kdcache.store.session import Session, is_alive, read_session

_LOOK_SECONDS = 1.0  # between two looks at whether the coordinator lives


class JoinedWriter:
    """One of several writers of a store that another process coordinates; a context manager.

    Attributes:
        manifest: what the store says about itself.
    """

    def __init__(self, root: Path, session: Session, *, beat_seconds: float = BEAT_SECONDS) -> None:
        self.manifest = read_manifest(root)
        self._root = root
        self._session = session
        self._left: dict[int, dict[int, BlockId]] = {}
        for block in session.blocks(self.manifest):
            self._left.setdefault(block.view, {})[block.block] = block
        # Heaps of the blocks that this worker may try: found at once, however many there are.
        self._untried = {view: sorted(left) for view, left in self._left.items()}
        self._blocks = BlockWriter(root, self.manifest)
        self._looked = time.monotonic()
        self._lives = True
        self._claims = Claims(root, beat_seconds=beat_seconds, on_beat=self._look)

    @classmethod
    def join(cls, location: str | Path, *, run: str, beat_seconds: float = BEAT_SECONDS) -> JoinedWriter | None:
        """Join the dump `run` at a location.

        Returns:
            the writer, or None while there is no such dump with a living coordinator: ask again, or give up.

        Raises:
            NotFoundError, IncompatibleError, CorruptStoreError: the store cannot be read.
        """
        root = local_path(location)
        session = read_session(root)
        if session is None or session.run != run or not is_alive(root, session):
            return None
        return cls(root, session, beat_seconds=beat_seconds)

    def views_left(self) -> tuple[int, ...]:
        """Views with blocks that nobody has committed and this worker does not hold; empty when the work is done.

        Raises:
            LockedError: the coordinator is gone.
        """
        self._check_coordinator()
        for view, block in recorded_places(self._root):
            self._forget(view, block)
        # copies: a dump asks in one thread and commits in another, which takes blocks out meanwhile
        left = [(view, tuple(blocks.values())) for view, blocks in self._left.items()]
        return tuple(view for view, blocks in left if not all(map(self._claims.holds, blocks)))

    def claim(self, view: int) -> BlockId | None:
        """The first block of a view that nobody has committed or claimed, now claimed; None when there is none now.

        Raises:
            LockedError: the coordinator is gone.
        """
        self._check_coordinator()
        untried = self._untried.get(view, [])
        others: list[int] = []
        try:
            while untried:
                block = self._left[view].get(heapq.heappop(untried))
                if block is None:
                    continue
                if has_record(self._root, block):
                    self._forget(view, block.block)
                    continue
                try:
                    taken = self._claims.take(block)
                except FileNotFoundError:
                    raise self._coordinator_gone() from None
                if not taken:
                    others.append(block.block)  # somebody works on it; if that dies, it is free again
                    continue
                if not has_record(self._root, block):
                    return block
                self._claims.release(block)  # committed between the two looks
                self._forget(view, block.block)
            return None
        finally:
            for number in others:
                heapq.heappush(untried, number)

    def write_block(self, block: BlockId, columns: Mapping[str, NDArray[Any]]) -> None:
        """Write a claimed block durably, commit it and give the claim back; `columns` as in `StoreWriter.write_block`.

        Raises:
            ConfigError, NumericError: the columns cannot be stored; nothing was written.
            LostClaimError: this worker was silent for so long that another one has the block; go on with others.
            LockedError: the coordinator is gone.
            ResourceError: no space.
        """
        try:
            self._write(block, columns)
        except LostClaimError:
            self._claims.release(block)  # nothing to give back where another one took it
            heapq.heappush(self._untried.setdefault(block.view, []), block.block)  # whoever has it now may die
            raise
        self._forget(block.view, block.block)
        self._claims.release(block)

    def _write(self, block: BlockId, columns: Mapping[str, NDArray[Any]]) -> None:
        try:
            self._blocks.write(block, columns, check=lambda: self._check(block))
        except FileNotFoundError as error:  # its partial files or the work folder were removed: both mean "not yours"
            self._check(block)
            raise LostClaimError(f"{self._root}: {block} was taken over while it was being written") from error

    def release(self, block: BlockId) -> None:
        """Give a claimed block back unwritten."""
        self._claims.release(block)
        heapq.heappush(self._untried.setdefault(block.view, []), block.block)

    def close(self) -> None:
        """Give all claims back. Safe to call twice."""
        self._claims.close()

    def __enter__(self) -> JoinedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _forget(self, view: int, block: int) -> None:
        self._left.get(view, {}).pop(block, None)

    def _check(self, block: BlockId) -> None:
        if not is_alive(self._root, self._session):
            raise self._coordinator_gone()
        self._claims.check(block)

    def _check_coordinator(self) -> None:
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._look()
        if not self._lives:
            raise self._coordinator_gone()

    def _look(self) -> None:
        self._looked = time.monotonic()
        self._lives = is_alive(self._root, self._session)

    def _coordinator_gone(self) -> LockedError:
        return LockedError(
            f"{self._root}: the process that coordinates the writing of this store has ended, so this worker ends, too",
            hint="give the same command again: it continues",
        )
