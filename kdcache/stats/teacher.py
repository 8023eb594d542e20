"""The teacher against the labels, from what a store keeps: accuracy, NLL, calibration, confidence, by class.

Sums only, so that memory does not grow with rows. No files, no printing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.metrics import CALIBRATION_BINS, calibration_of
from kdcache.stats.figures import ClassFigures, TeacherFigures
from kdcache.stats.sums import Sums
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
        self.sums: Sums = {
            "counts": torch.zeros(5, dtype=torch.float64),  # rows, top-1, top-5, NLL, confidence
            "bins": torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64),  # rows, confidence, right
            "histogram": torch.zeros(CONFIDENCE_BINS, dtype=torch.float64),
            "by_class": torch.zeros(3, num_classes if num_classes <= LARGEST_CLASSES else 0, dtype=torch.float64),
        }

    def add(self, targets: SoftTargets) -> None:
        """Count a batch."""
        confidence = targets.log_prob[:, 0].double().exp().clamp(max=1.0)
        right = (targets.index[:, 0] == targets.label).double()
        five = (targets.index[:, :5] == targets.label[:, None]).any(dim=1)
        nll = -targets.label_log_prob.double()
        counted = (torch.ones_like(right), right, five.double(), nll, confidence)
        self.sums["counts"] += torch.stack([values.sum() for values in counted])
        bins = _bin_of(confidence, CALIBRATION_BINS)
        for row, values in zip(self.sums["bins"], (torch.ones_like(confidence), confidence, right), strict=True):
            row.index_add_(0, bins, values)
        self.sums["histogram"].index_add_(0, _bin_of(confidence, CONFIDENCE_BINS), torch.ones_like(confidence))
        if self._classes <= LARGEST_CLASSES:
            probability = targets.label_log_prob.double().exp()
            for row, values in zip(self.sums["by_class"], (torch.ones_like(right), right, probability), strict=True):
                row.index_add_(0, targets.label, values)

    def result(self) -> TeacherFigures:
        """Figures over all rows that were added."""
        counted, top1, top5, nll, total = self.sums["counts"].tolist()
        rows = max(counted, 1)
        _, confidence, right = self.sums["bins"]
        return TeacherFigures(
            top1=top1 / rows,
            top5=top5 / rows if self._topk >= 5 < self._classes else None,
            nll=nll / rows,
            ece=float((confidence - right).abs().sum()) / rows,
            confidence=total / rows,
            calibration=calibration_of(self.sums["bins"]),
            histogram=tuple(int(number) for number in self.sums["histogram"].tolist()),
        )

    def by_class(self, names: list[str]) -> tuple[ClassFigures, ...]:
        """Classes that have rows, worst top-1 first; empty above 65,536 classes."""
        if self._classes > LARGEST_CLASSES:
            return ()
        rows, right, probability = self.sums["by_class"].tolist()
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
