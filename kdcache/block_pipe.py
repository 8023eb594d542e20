"""A bounded pipe from the teacher's forward pass to the store: batches in, committed blocks out, in a second thread.

The teacher never waits for the disk unless the disk is slower than the teacher; then the bounded queue slows it down.
The first error of the writing thread is raised in the thread that feeds it. Nothing here knows about models or data.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdcache.devices import HostCopy
from kdcache.errors import LostClaimError
from kdcache.progress import note
from kdcache.specs import StoreManifest
from kdcache.store.blocks import BlockId
from kdcache.targets.encode import EncodedBatch, check_finite

Columns = Mapping[str, NDArray[np.generic]]
_STOP = None
UNWRITTEN_BLOCKS = 1  # whole blocks that may wait while the next one is asked for: what a kill costs besides the latter


class BlockSink(Protocol):
    """Where blocks come from and go to: a `StoreWriter` that works alone, or one of several `JoinedWriter`s."""

    @property
    def manifest(self) -> StoreManifest:
        """Of the store."""
        ...

    def views_left(self) -> tuple[int, ...]:
        """Views with blocks that are neither committed nor in this process's hands."""
        ...

    def claim(self, view: int) -> BlockId | None:
        """The next block of a view to work on, or None when there is none at the moment."""
        ...

    def release(self, block: BlockId) -> None:
        """Give a claimed block back unwritten."""
        ...

    def write_block(self, block: BlockId, columns: Mapping[str, NDArray[Any]]) -> None:
        """Commit a claimed block."""
        ...


class BlockPipe:
    """Collects encoded batches into blocks and writes them in the background.

    Args:
        writer: where the blocks go.
        on_block: called in the writing thread with (block, columns) after each commit, for progress and checks; what
            it raises stops the dump.
        depth: batches that may wait; memory is bounded by `depth` batches and two blocks.
    """

    def __init__(
        self, writer: BlockSink, *, on_block: Callable[[BlockId, Columns], None] | None = None, depth: int = 8
    ) -> None:
        self._writer = writer
        self._on_block = on_block
        self._queue: queue.Queue[tuple[BlockId, HostCopy, Columns, int] | None] = queue.Queue(maxsize=depth)
        self._last: BlockId | None = None
        self._finished = 0  # whole blocks that were put
        self._written = 0
        self._one_written = threading.Condition()
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kdcache-block-writer", daemon=True)

    def __enter__(self) -> BlockPipe:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stopped.set()
        self._finish()
        if error is None and self._error is not None:
            raise self._error

    def put(self, block: BlockId, batch: EncodedBatch, extra: Columns, *, first_row: int = 0) -> None:
        """Queue the next batch of a block; batches of one block come in row order, blocks one after another.

        Args:
            block: the block the rows belong to.
            batch: encoded rows, still on the teacher's device.
            extra: columns that are known without the teacher (label, row_digest, view_params), same rows.
            first_row: number of the batch's first row, for messages.

        Raises:
            NumericError, LockedError, ResourceError: of this or an earlier block, from the writing thread.
        """
        if self._last is not None and block != self._last:
            self._finished += 1
            with self._one_written:
                while self._finished - self._written > UNWRITTEN_BLOCKS and self._error is None:
                    self._one_written.wait(timeout=0.2)
        self._last = block
        # started here, on the stream of the forward pass; the writing thread waits for them
        copy = HostCopy({**batch.device_columns(), "finite": batch.finite})
        while True:
            self.check()
            try:
                self._queue.put((block, copy, extra, first_row), timeout=0.2)
                return
            except queue.Full:
                continue

    def check(self) -> None:
        """Raise what went wrong in the writing thread."""
        if self._error is not None:
            raise self._error

    def _finish(self) -> None:
        while self._thread.is_alive():
            try:
                self._queue.put(_STOP, timeout=0.2)
                break
            except queue.Full:
                continue
        self._thread.join()

    def _run(self) -> None:
        parts: list[dict[str, NDArray[np.generic]]] = []
        filled = 0
        try:
            while (item := self._queue.get()) is not _STOP and not self._stopped.is_set():
                block, copy, extra, first_row = item
                tensors = copy.wait()
                check_finite(tensors.pop("finite"), first_row=first_row)
                parts.append({**{name: tensor.numpy() for name, tensor in tensors.items()}, **extra})
                filled += len(parts[-1]["label"])
                if filled == block.rows:
                    self._write(block, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
                    parts, filled = [], 0
        except BaseException as error:  # noqa: BLE001 - handed to the feeding thread, which raises it
            self._error = error

    def _write(self, block: BlockId, columns: Columns) -> None:
        try:
            self._writer.write_block(block, columns)
        except LostClaimError as error:  # another worker has it: nothing of the dump is lost, so this one goes on
            note(error.message)
        else:
            if self._on_block is not None:
                self._on_block(block, columns)
        with self._one_written:
            self._written += 1
            self._one_written.notify_all()
