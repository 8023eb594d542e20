"""The blocks of a store that is joined from parts of its rows. Workers import this and not `join`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdcache.errors import IncompatibleError
from kdcache.specs import StoreManifest
from kdcache.store.blocks import BlockId
from kdcache.store.reader import StoreReader, open_reader
from kdcache.store.row_spans import RowSpans
from kdcache.workers.filling import Columns, Maker


def join_maker(request: Mapping[str, Any], manifest: StoreManifest) -> Maker:
    """What makes the blocks of a joined store, in a worker.

    Args:
        request: "stores", the parts in the order of their rows.
        manifest: of the new store.

    Raises:
        IncompatibleError: the parts there are not those of the manifest.
    """
    return JoinedBlocks([open_reader(str(store)) for store in request["stores"]], manifest)


class JoinedBlocks:
    """Cuts the new store's blocks from the parts; one block of one part is in memory besides the new one.

    Args:
        readers: the parts, in the order of their rows.
        manifest: of the new store; names them as its parents.
    """

    def __init__(self, readers: Sequence[StoreReader], manifest: StoreManifest) -> None:
        expected = [parent["root_digest"] for parent in manifest.parents]
        found = [reader.manifest.root_digest for reader in readers]
        if found != expected:
            raise IncompatibleError(
                f"join: expected the parts with root digests {', '.join(digest[:12] for digest in expected)}, "
                f"found {', '.join(digest[:12] for digest in found)}",
                hint="every worker must see the same files",
            )
        self._readers = list(readers)
        lengths = [reader.manifest.dataset.num_rows for reader in readers]
        self._starts = np.concatenate(([0], np.cumsum(lengths))).tolist()
        self._open: tuple[int, RowSpans] | None = None

    def __call__(self, block: BlockId) -> Columns:
        """The columns of one block, from the part or the parts its rows are in."""
        pieces = []
        row = block.start
        while row < block.stop:
            part = bisect_right(self._starts, row) - 1
            end = min(block.stop, self._starts[part + 1])
            pieces.append(self._rows(part, block.view, row - self._starts[part], end - self._starts[part]))
            row = end
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _rows(self, part: int, view: int, start: int, stop: int) -> Columns:
        if self._open is None or self._open[0] != part:
            self._open = (part, RowSpans(self._readers[part]))
        return self._open[1].columns(view, start, stop)
