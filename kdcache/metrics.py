"""How good a classifier is on a data set: top-1, top-5, NLL, calibration error, agreement with a teacher.

Sums are kept on the device and added over processes, so that every row counts once. No files, no printing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CALIBRATION_BINS = 15  # Guo et al. 2017, arXiv:1706.04599


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Reliability of a classifier in bins of its confidence (the probability of the class it names).

    Attributes:
        edges: n + 1 rising bounds from 0 to 1; bin i is (edges[i], edges[i + 1]].
        confidence: mean confidence of the rows in each bin; None in an empty bin.
        accuracy: share of them that are right; None in an empty bin.
        count: rows in each bin.
    """

    edges: Sequence[float]
    confidence: Sequence[float | None]
    accuracy: Sequence[float | None]
    count: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures over all rows.

    Attributes:
        rows: how many rows were counted.
        top1, top5: shares of rows whose label is the first, or among the first five classes.
        nll: mean negative log-probability of the label, nats.
        ece: expected calibration error, 15 equal bins of confidence, in [0, 1].
        agreement: share of rows where student and teacher name the same class; None without a teacher's opinion.
        calibration: what `ece` sums up, for a reliability diagram; None in checkpoints of before it was kept.
        perplexity: exp(nll) of token rows; None elsewhere.
    """

    rows: int
    top1: float
    top5: float
    nll: float
    ece: float
    agreement: float | None = None
    calibration: Calibration | None = None
    perplexity: float | None = None

    def scalars(self) -> dict[str, float]:
        """The figures that are single numbers and known, by name; without the count of rows."""
        names = ("top1", "top5", "nll", "ece", "agreement", "perplexity")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Evaluation:
        """An evaluation from what `dataclasses.asdict` made of it."""
        kept = document.get("calibration")
        return cls(**{**document, "calibration": None if kept is None else Calibration(**kept)})

    def better_than(self, other: Evaluation) -> bool:
        """Whether this is the better one: by perplexity where both have one, else by top-1."""
        if self.perplexity is not None and other.perplexity is not None:
            return self.perplexity < other.perplexity
        return self.top1 > other.top1

    def __str__(self) -> str:
        shown = f"top-1 {self.top1:.2%}, NLL {self.nll:.3f}"
        return shown if self.perplexity is None else f"perplexity {self.perplexity:.1f}, {shown}"


class EvaluationSums:
    """Adds up what `Evaluation` needs, batch by batch.

    Args:
        device: where the batches are.
    """

    def __init__(self, device: torch.device | str) -> None:
        # rows, top-1, top-5, NLL, rows with a teacher, agreeing; then rows, confidence and right answers of each bin
        self._sums = torch.zeros(6 + 3 * CALIBRATION_BINS, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, labels: Tensor, teacher_class: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            logits: (B, K) float.
            labels: (B,) int64.
            teacher_class: (B,) int64, the teacher's most probable class, where known.
        """
        log_prob = torch.log_softmax(logits.float(), dim=1)
        confidence, predicted = log_prob.max(dim=1)
        right = predicted == labels
        five = log_prob.topk(min(5, log_prob.shape[1]), dim=1).indices
        self._sums[0] += len(labels)
        self._sums[1] += right.sum()
        self._sums[2] += (five == labels[:, None]).any(dim=1).sum()
        self._sums[3] -= log_prob.gather(1, labels[:, None]).double().sum()
        if teacher_class is not None:
            self._sums[4] += len(labels)
            self._sums[5] += (predicted == teacher_class).sum()
        bins = (confidence.exp() * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
        table = self._sums[6:].view(3, CALIBRATION_BINS)
        table[0].index_add_(0, bins, torch.ones_like(confidence, dtype=torch.float64))
        table[1].index_add_(0, bins, confidence.exp().double())
        table[2].index_add_(0, bins, right.double())

    def result(self, sum_over_processes: Callable[[Tensor], Tensor] = lambda sums: sums) -> Evaluation:
        """The figures; `sum_over_processes` adds the (51,) float64 sums of all processes."""
        sums = sum_over_processes(self._sums.clone()).cpu()
        rows = float(sums[0])
        per_row = (sums[1:4] / max(rows, 1)).tolist()
        table = sums[6:].view(3, CALIBRATION_BINS)
        gap = (table[1] - table[2]).abs().sum() / max(rows, 1)
        agreement = float(sums[5] / sums[4]) if sums[4] > 0 else None
        return Evaluation(
            rows=int(rows),
            top1=per_row[0],
            top5=per_row[1],
            nll=per_row[2],
            ece=float(gap),
            agreement=agreement,
            calibration=calibration_of(table),
        )


def calibration_of(table: Tensor) -> Calibration:
    """The bins from (3, n) sums of rows, confidence and right answers."""
    bins = list(zip(*table.tolist(), strict=True))
    return Calibration(
        edges=[number / len(bins) for number in range(len(bins) + 1)],
        confidence=[confidence / rows if rows else None for rows, confidence, _ in bins],
        accuracy=[right / rows if rows else None for rows, _, right in bins],
        count=[int(rows) for rows, _, _ in bins],
    )


def evaluate(
    module: nn.Module,
    batches: Iterable[tuple[Any, Tensor, Tensor | None]],
    *,
    device: torch.device | str,
    sum_over_processes: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Evaluation:
    """Evaluate a module in eval mode and float32; its mode is restored.

    Args:
        module: inputs (a tensor, or what else it takes) -> (B, K) logits.
        batches: (inputs, labels (B,) int64, teacher's class (B,) int64 or None), on `device`.
        device: where the module is.
        sum_over_processes: adds up the sums of several processes, each of which evaluates its share.
    """
    was_training = module.training
    module.eval()
    sums = EvaluationSums(device)
    try:
        with torch.inference_mode():
            for inputs, labels, teacher_class in batches:
                sums.add(module(inputs), labels, teacher_class)
    finally:
        module.train(was_training)
    return sums.result(sum_over_processes)
