"""The teacher against the labels, from what a store keeps: accuracy, NLL, calibration, confidence, by class.

Sums only, so that memory does not grow with rows. No files, no printing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.metrics import CALIBRATION_BINS, calibration_of
from kdcache.stats.figures import ClassFigures, TeacherFigures
from kdcache.targets.soft import SoftTargets

CONFIDENCE_BINS = 20
LARGEST_CLASSES = 65_536  # above it three numbers for every class are a listing nobody reads


class TeacherSums:
    """Adds up what `TeacherFigures` and `ClassFigures` need.

    Args:
        num_classes: K.
        topk: the stored k.
    """

    def __init__(self, num_classes: int, topk: int) -> None:
        self._classes, self._topk = num_classes, topk
        self._rows = self._top1 = self._top5 = 0
        self._nll = self._sum = 0.0
        self._bins = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64)  # rows, confidence, right
        self._histogram = torch.zeros(CONFIDENCE_BINS, dtype=torch.float64)
        self._by_class = torch.zeros(3, min(num_classes, LARGEST_CLASSES), dtype=torch.float64)

    def add(self, targets: SoftTargets) -> None:
        """Count a batch."""
        confidence = targets.log_prob[:, 0].double().exp().clamp(max=1.0)
        right = (targets.index[:, 0] == targets.label).double()
        self._rows += len(targets)
        self._top1 += int(right.sum())
        self._top5 += int((targets.index[:, :5] == targets.label[:, None]).any(dim=1).sum())
        self._nll -= float(targets.label_log_prob.double().sum())
        self._sum += float(confidence.sum())
        bins = _bin_of(confidence, CALIBRATION_BINS)
        for row, values in zip(self._bins, (torch.ones_like(confidence), confidence, right), strict=True):
            row.index_add_(0, bins, values)
        self._histogram.index_add_(0, _bin_of(confidence, CONFIDENCE_BINS), torch.ones_like(confidence))
        if self._classes <= LARGEST_CLASSES:
            probability = targets.label_log_prob.double().exp()
            for row, values in zip(self._by_class, (torch.ones_like(right), right, probability), strict=True):
                row.index_add_(0, targets.label, values)

    def result(self) -> TeacherFigures:
        """Figures over all rows that were added."""
        rows = max(self._rows, 1)
        _, confidence, right = self._bins
        return TeacherFigures(
            top1=self._top1 / rows,
            top5=self._top5 / rows if self._topk >= 5 < self._classes else None,
            nll=self._nll / rows,
            ece=float((confidence - right).abs().sum()) / rows,
            confidence=self._sum / rows,
            calibration=calibration_of(self._bins),
            histogram=tuple(int(number) for number in self._histogram.tolist()),
        )

    def by_class(self, names: list[str]) -> tuple[ClassFigures, ...]:
        """Classes that have rows, worst top-1 first; empty above 65,536 classes."""
        if self._classes > LARGEST_CLASSES:
            return ()
        rows, right, probability = self._by_class.tolist()
        figures = [
            ClassFigures(
                label=label,
                name=names[label],
                rows=int(rows[label]),
                top1=right[label] / rows[label],
                probability=probability[label] / rows[label],
            )
            for label in range(self._classes)
            if rows[label]
        ]
        return tuple(sorted(figures, key=lambda item: (item.top1, item.probability)))


def _bin_of(confidence: Tensor, bins: int) -> Tensor:
    """The bin whose (lower, upper] holds a confidence; the rule of `metrics`."""
    return (confidence * bins).ceil().long().clamp(1, bins) - 1
