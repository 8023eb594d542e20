"""`stats`: one streamed pass over a store, block by block, all figures at once. Reads bytes, writes nothing.

Memory holds one block of two views and the sums: it grows with k and K, not with N or V.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.errors import ConfigError
from kdcache.progress import Progress
from kdcache.specs import StoreManifest
from kdcache.stats.agreement import AgreementSums, Opinion
from kdcache.stats.figures import AtTemperature, StoreStats
from kdcache.stats.rows import BlockRows, ContradictedRows, confused_pairs
from kdcache.stats.teacher import TeacherSums
from kdcache.stats.tempered import TemperedSums
from kdcache.store.blocks import BlockId, blocks_of_view
from kdcache.store.info import bytes_by_view, describe
from kdcache.store.reader import StoreReader, open_reader
from kdcache.targets.similarity import LARGEST_MATRIX, add_class_means
from kdcache.targets.soft import TARGET_COLUMNS, SoftTargets
from kdcache.urls import clean_url

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
CONTRADICTIONS = 20
GOOD_COSINE = 0.99
JUDGED = (1.0, 4.0)  # temperatures the suggested k answers for
PIECE = 2**16  # named classes handled at once: the float64 work of a piece then stays in cache
MIXING = ("mixup", "cutmix", "mixup-or-cutmix")


def store_stats(
    location: str | Path, *, temperatures: Sequence[float] = TEMPERATURES, contradictions: int = CONTRADICTIONS
) -> StoreStats:
    """Statistics of a sealed store, every block checked against the ledger on the way.

    Args:
        location: the store.
        temperatures: distinct T > 0, no unit.
        contradictions: how many rows that contradict their label are named.

    Raises:
        ConfigError: a temperature or count out of range.
        NotFoundError, IncompatibleError, UnfinishedStoreError, CorruptStoreError: as `open_reader`, and damage in a
            block as `StoreReader.block`.
    """
    chosen = _checked(temperatures, contradictions)
    started = time.perf_counter()
    reader = open_reader(location)
    survey = _Survey(reader.manifest, chosen, contradictions)
    total = reader.manifest.dataset.num_rows * reader.manifest.num_views
    with torch.inference_mode(), Progress(total, "rows", label="stats", keep=False) as progress:
        for rows in survey.run(reader):
            progress.update(rows)
    seconds = time.perf_counter() - started
    facts = describe(location, copy=reader.folder)  # all chunks are there by now, also of a place that lists nothing
    return survey.result(facts, bytes_by_view(location, copy=reader.folder), seconds)


def _checked(temperatures: Sequence[float], contradictions: int) -> tuple[float, ...]:
    chosen = tuple(dict.fromkeys(float(value) for value in temperatures))
    wrong = [value for value in chosen if not 0 < value < float("inf")]
    if wrong or not chosen:
        found = f"{wrong[0]:g}" if wrong else "none"
        raise ConfigError(f"temperatures: expected positive numbers, found {found}", hint="--temperature 1,2,4,8")
    if contradictions < 0:
        raise ConfigError(f"contradictions: expected 0 or more rows, found {contradictions}")
    return chosen


@dataclass(frozen=True)
class _Block:
    """The rows of one block of one view, in pieces."""

    pieces: list[SoftTargets]

    def opinions(self) -> list[Opinion]:
        return [Opinion.of(piece) for piece in self.pieces]


class _Survey:
    """All sums of one pass."""

    def __init__(self, manifest: StoreManifest, temperatures: tuple[float, ...], contradictions: int) -> None:
        data, codec = manifest.dataset, manifest.codec
        self._manifest = manifest
        self._counted = 0
        self._names = class_names(manifest)
        self._mixed = any(op.get("op") in MIXING for op in manifest.views.ops)
        self._teacher = TeacherSums(data.num_classes, codec.topk)
        self._tempered = [
            TemperedSums(temperature, topk=codec.topk, num_classes=data.num_classes, tail_numbers=codec.tail_numbers)
            for temperature in temperatures
        ]
        self._agreement = AgreementSums(complete=codec.topk == data.num_classes)
        self._contradicted = ContradictedRows(0 if self._mixed else contradictions, self._names)
        whole = data.num_classes <= LARGEST_MATRIX and not self._mixed
        self._means = torch.zeros(data.num_classes, data.num_classes, dtype=torch.float64) if whole else None

    def run(self, reader: StoreReader) -> Iterator[int]:
        """Count everything, block by block and view by view inside; yields rows as they are done."""
        views = self._manifest.num_views
        for first in blocks_of_view(self._manifest, 0):
            counted = _Rows.none()
            rows = BlockRows(0)
            opening: list[Opinion] = []
            before: list[Opinion] = []
            for view in range(views):
                columns = reader.block(view, first.block)
                if view == 0:  # what has no view axis comes with the first
                    counted = _Rows.of(first, columns)
                    rows = BlockRows(len(counted.labels))
                    self._counted += len(counted.labels)
                block = _Block(_pieces(columns, counted, self._manifest.dataset.num_classes))
                self._add(block, rows)
                if views > 1:
                    opinions = block.opinions()
                    if view == 0:
                        opening = opinions
                    else:
                        self._compare(before, opinions)
                    before = opinions
                yield first.rows
            if views > 2:  # of two views the one pair is counted already
                self._compare(before, opening)
            if not self._mixed:
                self._contradicted.add(counted.numbers, rows, views, counted.labels, counted.digests)

    def _add(self, block: _Block, rows: BlockRows) -> None:
        start = 0
        for targets in block.pieces:
            self._teacher.add(targets)
            for sums in self._tempered:
                sums.add(targets)
            if self._means is not None:
                add_class_means(self._means, targets, 1.0)
            rows.add(start, targets)
            start += len(targets)

    def _compare(self, before: list[Opinion], after: list[Opinion]) -> None:
        for p, q in zip(before, after, strict=True):
            self._agreement.add(p, q)

    def result(self, facts: dict[str, Any], by_view: dict[str, list[int]], seconds: float) -> StoreStats:
        """The figures, with what `describe` says about bytes."""
        manifest = self._manifest
        data, codec = manifest.dataset, manifest.codec
        tempered = tuple(sums.result() for sums in self._tempered)
        means, seen = self._class_means()
        return StoreStats(
            location=clean_url(str(facts["location"])),
            rows=data.num_rows,
            counted=self._counted,
            classes=data.num_classes,
            topk=codec.topk,
            views=manifest.num_views,
            policy=manifest.views.policy,
            mixed=self._mixed,
            dataset=data.name,
            split=data.split,
            teacher=manifest.teacher.source,
            precision=codec.precision,
            store_key=manifest.store_key,
            root_digest=manifest.root_digest,
            figures=self._teacher.result(),
            temperatures=tempered,
            suggested_topk=suggested_topk(tempered),
            agreement=self._agreement.result(),
            by_class=() if self._mixed else self._teacher.by_class(self._names),
            confused=() if means is None else confused_pairs(means, seen, self._names),
            contradictions=self._contradicted.result(),
            bytes_on_disk=int(facts["bytes_on_disk"]),
            bytes_by_array={name: int(array["bytes_on_disk"]) for name, array in facts["arrays"].items()},
            bytes_by_view=by_view,
            full_logits_bytes=int(facts["full_logits_bytes"]),
            seconds=round(seconds, 3),
            rows_per_second=round(data.num_rows * manifest.num_views / max(seconds, 1e-9)),
            class_means=means,
        )

    def _class_means(self) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_]]:
        """(K, K) means, 0 in the row of a class without rows, and (K,) which have rows."""
        if self._means is None:
            return None, np.zeros(0, dtype=bool)
        total = self._means.sum(dim=1, keepdim=True)
        return (self._means / total.clamp(min=1e-300)).float().numpy(), (total[:, 0] > 0).numpy()


def suggested_topk(tempered: Sequence[AtTemperature]) -> int | None:
    """The smallest stored k whose gradient cosine is at least 0.99 at every T from 1 to 4; None when none is.

    Above T=4 the teacher is nearly even and only all K classes would do; few train there.
    """
    judged = [at for at in tempered if JUDGED[0] <= at.temperature <= JUDGED[1]]
    if not judged:
        return None
    worst = [min(cosines) for cosines in zip(*(at.gradient_cosine for at in judged), strict=True)]
    return next((k for k, cosine in enumerate(worst, start=1) if cosine >= GOOD_COSINE), None)


def class_names(manifest: StoreManifest) -> list[str]:
    """K names: the data set's where it has that many, else the numbers."""
    given = manifest.dataset.class_names
    count = manifest.dataset.num_classes
    return list(given) if len(given) == count else [str(number) for number in range(count)]


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
