"""A bounded pipe from the teacher's forward pass to the store: batches in, committed blocks out, in a second thread.

The teacher never waits for the disk unless the disk is slower than the teacher; then the bounded queue slows it down.
The first error of the writing thread is raised in the thread that feeds it. Nothing here knows about models or data.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from kdcache.store.blocks import BlockId
from kdcache.store.writer import StoreWriter
from kdcache.targets.encode import EncodedBatch

Columns = Mapping[str, NDArray[np.generic]]
_STOP = None


class BlockPipe:
    """Collects encoded batches into blocks and writes them in the background.

    Args:
        writer: an open store writer.
        on_block: called in the writing thread with (block, columns) after each commit, for progress and checks; what
            it raises stops the dump.
        depth: batches that may wait; memory is bounded by `depth` batches and one block.
    """

    def __init__(
        self, writer: StoreWriter, *, on_block: Callable[[BlockId, Columns], None] | None = None, depth: int = 8
    ) -> None:
        self._writer = writer
        self._on_block = on_block
        self._queue: queue.Queue[tuple[BlockId, EncodedBatch, Columns] | None] = queue.Queue(maxsize=depth)
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

    def put(self, block: BlockId, batch: EncodedBatch, extra: Columns) -> None:
        """Queue the next batch of a block; batches of one block come in row order, blocks one after another.

        Args:
            block: the block the rows belong to.
            batch: encoded rows, still on the teacher's device.
            extra: columns that are known without the teacher (label, row_digest, view_params), same rows.
        """
        while True:
            if self._error is not None:
                raise self._error
            try:
                self._queue.put((block, batch, extra), timeout=0.2)
                return
            except queue.Full:
                continue

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
                block, batch, extra = item
                columns: dict[str, NDArray[np.generic]] = {k: v.numpy() for k, v in batch.columns().items()}
                parts.append({**columns, **extra})
                filled += len(columns["label"])
                if filled == block.stop - block.start:
                    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
                    self._writer.write_block(block, whole)
                    if self._on_block is not None:
                        self._on_block(block, whole)
                    parts, filled = [], 0
        except BaseException as error:  # noqa: BLE001 - handed to the feeding thread, which raises it
            self._error = error
