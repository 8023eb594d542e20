"""All sums of a pass over a store: made block by block, each from zero, then added in the order of rows.

A block's sums are what a worker sends back, and what one process adds up, too: the figures are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.specs import StoreManifest
from kdcache.stats.agreement import AgreementSums, Opinion
from kdcache.stats.rows import BlockRows, ContradictedRows
from kdcache.stats.sums import Sums, add_sums
from kdcache.stats.teacher import TeacherSums
from kdcache.stats.tempered import TemperedSums
from kdcache.store.blocks import BlockId, block_at
from kdcache.store.reader import StoreReader
from kdcache.targets.similarity import LARGEST_MATRIX, ClassMeanSums
from kdcache.targets.soft import TARGET_COLUMNS, SoftTargets
from kdcache.targets.tail import tail_with_label
from kdcache.workers.tasks import pack, unpack

PIECE = 2**16  # named classes handled at once: the float64 work of a piece then stays in cache
MIXING = ("mixup", "cutmix", "mixup-or-cutmix")


class SurveySums:
    """Every sum over some rows of a store.

    Args:
        manifest: of the store.
        temperatures: T of `tempered`.
        contradictions: how many rows that contradict their label are kept.

    Attributes:
        mixed: the store's views mix two examples.
        counted: rows, over all views counted once.
        teacher, tempered, agreement, contradicted: as their classes say.
        means: class means at T=1; None for mixed views and for K above 4,096.
    """

    def __init__(self, manifest: StoreManifest, temperatures: Sequence[float], contradictions: int) -> None:
        data, codec = manifest.dataset, manifest.codec
        self._manifest = manifest
        self.mixed = any(op.get("op") in MIXING for op in manifest.views.ops)
        self.counted = 0
        self.teacher = TeacherSums(data.num_classes, codec.topk)
        self.tempered = [
            TemperedSums(temperature, topk=codec.topk, num_classes=data.num_classes, tail_numbers=codec.tail_numbers)
            for temperature in temperatures
        ]
        self.agreement = AgreementSums(complete=codec.topk == data.num_classes)
        self.contradicted = ContradictedRows(0 if self.mixed else contradictions)
        whole = data.num_classes <= LARGEST_MATRIX and not self.mixed
        self.means = ClassMeanSums(data.num_classes) if whole else None

    def count_block(self, reader: StoreReader, number: int, on_rows: Callable[[int], object]) -> None:
        """Count the rows of one block in every view; `on_rows` hears of the rows of each view."""
        views = self._manifest.num_views
        first = block_at(self._manifest, 0, number)
        counted = _Rows.none()
        rows = BlockRows(0)
        opening: list[Opinion] = []
        before: list[Opinion] = []
        for view in range(views):
            columns = reader.block(view, number)
            if view == 0:  # what has no view axis comes with the first
                counted = _Rows.of(first, columns)
                rows = BlockRows(len(counted.labels))
                self.counted += len(counted.labels)
            pieces = _pieces(columns, counted, self._manifest.dataset.num_classes)
            self._count(pieces, rows)
            if views > 1:
                opinions = [Opinion.of(piece) for piece in pieces]
                if view == 0:
                    opening = opinions
                else:
                    self._compare(before, opinions)
                before = opinions
            on_rows(first.rows)
        if views > 2:  # of two views the one pair is counted already
            self._compare(before, opening)
        if not self.mixed:
            self.contradicted.add(counted.numbers, rows, views, counted.labels, counted.digests)

    def _count(self, pieces: list[SoftTargets], rows: BlockRows) -> None:
        start = 0
        for targets in pieces:
            self.teacher.add(targets)
            tail = tail_with_label(targets)  # once for all temperatures
            for sums in self.tempered:
                sums.add(targets, tail)
            if self.means is not None:
                self.means.add(targets, 1.0)
            rows.add(start, targets)
            start += len(targets)

    def _compare(self, before: list[Opinion], after: list[Opinion]) -> None:
        for p, q in zip(before, after, strict=True):
            self.agreement.add(p, q)

    def to_bytes(self) -> bytes:
        """Everything in here, as numpy's npz: no pickle; class means where they are not 0."""
        arrays: dict[str, NDArray[Any]] = {
            f"{place}/{name}": values.numpy()
            for place, sums in enumerate(self._parts())
            for name, values in sums.items()
        }
        arrays |= {"counted": np.asarray(self.counted), "contradicted": self.contradicted.found}
        if self.means is not None:
            arrays |= {f"means/{name}": values.numpy() for name, values in self.means.parts().items()}
        return pack(arrays)

    def add_bytes(self, data: bytes) -> None:
        """Add the sums of the next rows, as `to_bytes` gave them for a store of the same manifest."""
        arrays = unpack(data)
        for place, sums in enumerate(self._parts()):
            add_sums(sums, {name: torch.from_numpy(arrays[f"{place}/{name}"]) for name in sums})
        self.counted += int(arrays["counted"])
        self.contradicted.add_found(arrays["contradicted"])
        if self.means is not None:
            names = ("index", "named", "level")
            self.means.add_parts({name: torch.from_numpy(arrays[f"means/{name}"]) for name in names})

    def _parts(self) -> list[Sums]:
        return [self.teacher.sums, self.agreement.sums, *(sums.sums for sums in self.tempered)]


@dataclass(frozen=True)
class _Rows:
    """The rows of a block that count: all, or those its mask keeps (tokens that are no padding)."""

    numbers: NDArray[np.int64]
    labels: NDArray[np.int64]
    digests: NDArray[np.uint16]
    places: NDArray[np.int64] | None

    @classmethod
    def none(cls) -> _Rows:
        empty = np.zeros(0, dtype=np.int64)
        return cls(empty, empty, empty.astype(np.uint16), None)

    @classmethod
    def of(cls, block: BlockId, columns: dict[str, NDArray[Any]]) -> _Rows:
        places = np.flatnonzero(columns["mask"]) if "mask" in columns else None
        kept = slice(None) if places is None else places
        numbers = np.arange(block.start, block.stop)[kept]
        return cls(numbers, columns["label"][kept].astype(np.int64), columns["row_digest"][kept], places)


def _pieces(columns: dict[str, NDArray[Any]], counted: _Rows, num_classes: int) -> list[SoftTargets]:
    topk = columns["topk_index"].shape[1]
    labels = counted.labels
    if counted.places is not None:
        columns = {name: values[counted.places] for name, values in columns.items()}
    size = max(256, PIECE // (topk + 1))
    pieces = []
    for start in range(0, len(labels), size):
        here = slice(start, start + size)
        part = {name: columns[name][here] for name in TARGET_COLUMNS}
        pieces.append(SoftTargets.from_columns(part, labels[here], num_classes=num_classes))
    return pieces
