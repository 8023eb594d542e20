"""Any rows of a view of a store, cut from its blocks as they are read: verified, one block in memory at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.store.blocks import block_at
from kdcache.store.reader import StoreReader

Columns = dict[str, NDArray[Any]]


class RowSpans:
    """Rows of an open store, for those who go through it more or less in order.

    Args:
        reader: the store. Blocks are read as they are needed and the last one is kept; what has no view axis is read
            once, when it is asked for.
    """

    def __init__(self, reader: StoreReader) -> None:
        self.reader = reader
        self._held: tuple[int, int, Columns] | None = None
        self._labels: NDArray[Any] | None = None

    def columns(self, view: int, start: int, stop: int) -> Columns:
        """The columns of rows start <= i < stop of a view; of view 0 also the arrays without a view axis.

        Raises:
            As `StoreReader.block`.
        """
        manifest = self.reader.manifest
        pieces: list[Columns] = []
        row = start
        while row < stop:
            source = block_at(manifest, view, row // manifest.block_rows)
            end = min(source.stop, stop)
            here = slice(row - source.start, end - source.start)
            pieces.append({name: values[here] for name, values in self._block(view, source.block).items()})
            row = end
        if len(pieces) == 1:
            return pieces[0]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def labels(self, start: int, stop: int) -> NDArray[Any]:
        """(rows,) labels in the stored type."""
        if self._labels is None:  # not `row_array`, which keeps the whole of view 0 in memory
            self._labels = np.concatenate([columns["label"] for _, columns in self.reader.blocks(0)])
        return self._labels[start:stop]

    def _block(self, view: int, block: int) -> Columns:
        if self._held is None or self._held[:2] != (view, block):
            self._held = None  # before the next one is read: two blocks would double the memory
            self._held = (view, block, self.reader.block(view, block))
        return self._held[2]
