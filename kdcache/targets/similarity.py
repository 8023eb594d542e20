"""Which classes the teacher finds alike: rows of R, from its last layer's weights or from its mean opinion.

R[y, :] is a distribution over the classes for a label y. It is found once per store (`prepare`), in float32; the
weights are kept instead of R where K is large. Source of the weight form: Tang et al. 2020, arXiv:2002.03532,
"KD-sim", recalled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kdcache.errors import ConfigError, IncompatibleError
from kdcache.targets.method import StoreColumns
from kdcache.targets.mixed import seen_from_partner
from kdcache.targets.soft import SoftTargets
from kdcache.targets.split import log_label_probs, split_teacher

LARGEST_MATRIX = 4096  # 64 MB of float32; above it rows come from the weights, batch by batch
ROWS_TO_SOLVE = 1024
SMALLEST = 1e-12  # keeps log R finite; far below what moves a gradient


@dataclass(frozen=True, kw_only=True)
class MatrixSimilarity:
    """R held as (K, K) float32."""

    matrix: Tensor

    def rows(self, label: Tensor) -> Tensor:
        """(B, K) rows R[y]."""
        return self.matrix.to(label.device)[label]


@dataclass(frozen=True, kw_only=True)
class WeightSimilarity:
    """R computed per batch from unit rows (K, D): softmax(sgn(s) |s|^power / beta) of their cosines s."""

    unit: Tensor
    power: float
    beta: float

    def rows(self, label: Tensor) -> Tensor:
        """(B, K) rows R[y]."""
        unit = self.unit.to(label.device)
        return similarity_rows(unit[label], unit, power=self.power, beta=self.beta)


def similarity_rows(some: Tensor, unit: Tensor, *, power: float, beta: float) -> Tensor:
    """softmax(sgn(s) |s|^power / beta) with s the cosines between (M, D) and (K, D) unit rows; (M, K)."""
    return _floored(torch.softmax(_sharpened(_cosines(some, unit), power) / beta, dim=1))


def _cosines(some: Tensor, unit: Tensor) -> Tensor:
    with torch.autocast(device_type=some.device.type, enabled=False):  # bfloat16 would move R by 1e-2
        return some @ unit.T


def _sharpened(cosine: Tensor, power: float) -> Tensor:
    return cosine.sign() * cosine.abs() ** power


def _floored(rows: Tensor) -> Tensor:
    rows = rows.clamp(min=SMALLEST)
    return rows / rows.sum(dim=1, keepdim=True)


def solve_beta(unit: Tensor, *, power: float, confidence: float) -> float:
    """The beta at which the mean of R[y, y] is `confidence`; within 1e-4 wherever that can be reached.

    The mean falls from 1 (beta to 0) to 1/K (beta to infinity), monotonically, so bisection on log beta finds it. For
    K above 1,024 it uses that many evenly spaced classes.

    Raises:
        ConfigError: no beta gives that confidence (below 1/K, or classes with equal weights).
    """
    classes = len(unit)
    chosen = torch.linspace(0, classes - 1, min(classes, ROWS_TO_SOLVE), device=unit.device).round().long()
    scores = _sharpened(_cosines(unit[chosen], unit), power)
    own = torch.arange(len(chosen), device=unit.device)

    def mean_confidence(beta: float) -> float:
        return float(torch.softmax(scores / beta, dim=1)[own, chosen].mean())

    low, high = math.log(1e-4), math.log(1e4)
    if not mean_confidence(math.exp(high)) < confidence < mean_confidence(math.exp(low)):
        raise ConfigError(
            f"similarity: no beta gives a mean R[y,y] of {confidence:g} for these {classes} classes",
            hint="set beta yourself, or a confidence between 1/K and 1",
        )
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_confidence(math.exp(middle)) > confidence else (low, middle)
    return math.exp((low + high) / 2)


def from_weights(
    weight: Tensor, *, power: float, beta: float | None, confidence: float
) -> tuple[MatrixSimilarity | WeightSimilarity, float]:
    """R from the teacher's last layer (K, D), and the beta used.

    Args:
        weight: one row per class.
        power: the exponent a of sgn(s) |s|^a; above 1 it sharpens.
        beta: temperature of the softmax over similarities; None solves for `confidence`.
        confidence: wanted mean of R[y, y]: a similarity that also changes the confidence would be judged for that.
    """
    unit = functional.normalize(weight.detach().float(), dim=1)
    used = solve_beta(unit, power=power, confidence=confidence) if beta is None else beta
    if len(unit) > LARGEST_MATRIX:
        return WeightSimilarity(unit=unit, power=power, beta=used), used
    return MatrixSimilarity(matrix=similarity_rows(unit, unit, power=power, beta=used)), used


def class_means(store: StoreColumns, temperature: float) -> MatrixSimilarity:
    """R[y, :] = mean of p^T over the rows of class y, the tail's mass spread evenly; a class without rows is uniform.

    Raises:
        IncompatibleError: K is too large for a (K, K) matrix, or the store's views mix two examples.
    """
    classes = store.num_classes
    kept = store.class_mean(temperature)
    if kept is not None:
        return MatrixSimilarity(matrix=_floored(kept))
    if classes > LARGEST_MATRIX:
        raise IncompatibleError(
            f"similarity=mean keeps K x K numbers: expected at most {LARGEST_MATRIX} classes, found {classes}",
            hint="use similarity=weights",
        )
    sums: ClassMeanSums | None = None
    for targets in store.batches():
        if targets.mix is not None:
            raise IncompatibleError(
                "similarity=mean takes the teacher's mean opinion of each class, and the store's views mix two classes",
                hint="use similarity=weights, or a store without mixup and cutmix",
            )
        if sums is None:
            sums = ClassMeanSums(classes, device=targets.device)
        sums.add(targets, temperature)
    if sums is None:
        raise IncompatibleError("similarity=mean: the store has no rows")
    return MatrixSimilarity(matrix=_floored(sums.means()))


class ClassMeanSums:
    """Sums of p^T by label, without building (B, K): named classes by index, the others as one level per label.

    Attributes:
        named: (K, K) float64, row y what the named classes of rows labelled y have above their row's level.
        level: (K,) float64, entry y the sum of the levels of rows labelled y.
    """

    def __init__(self, num_classes: int, *, device: torch.device | str = "cpu") -> None:
        self.named = torch.zeros(num_classes, num_classes, dtype=torch.float64, device=device)
        self.level = torch.zeros(num_classes, dtype=torch.float64, device=device)

    def add(self, targets: SoftTargets, temperature: float) -> None:
        """Count B rows at T."""
        teacher = split_teacher(targets, temperature)
        level = (teacher.tail_prob / teacher.count.clamp(min=1)).double()
        self.level.index_add_(0, targets.label, level)
        flat = targets.label[:, None] * len(self.level) + teacher.index
        values = (teacher.prob.double() - level[:, None]) * teacher.named
        self.named.view(-1).index_add_(0, flat.flatten(), values.flatten())

    def parts(self) -> dict[str, Tensor]:
        """What was added up, without the zeros: "index" (n,) int64 places in `named`, "named" (n,) there, "level"."""
        flat = self.named.view(-1)
        index = flat.nonzero()[:, 0]
        return {"index": index, "named": flat[index], "level": self.level}

    def add_parts(self, parts: Mapping[str, Tensor]) -> None:
        """Add the sums of other rows, as `parts` gave them. Block by block, the sum depends on their order alone."""
        self.named.view(-1).index_add_(0, parts["index"], parts["named"])
        self.level += parts["level"]

    def total(self) -> Tensor:
        """(K, K) float64 whose row y is the sum of p^T over the rows labelled y; it adds up to their number."""
        return self.named + self.level[:, None]

    def means(self) -> Tensor:
        """(K, K) float32 means; a class without rows is uniform."""
        total = self.total()
        seen = total.sum(dim=1, keepdim=True)
        return torch.where(seen > 0, total / seen.clamp(min=1), 1.0 / len(total)).float()


def mean_confidence(store: StoreColumns, temperature: float) -> float:
    """Mean of the teacher's p_y^T over the store's rows; of mixed rows, of both labels together."""
    total, rows = 0.0, 0
    for targets in store.batches():
        total += float(log_label_probs(targets, temperature)[0].double().exp().sum())
        if targets.mix is not None:
            other = log_label_probs(seen_from_partner(targets), temperature)[0].double().exp()
            total += float(other[targets.mix.partner_label != targets.label].sum())
        rows += len(targets)
    if rows == 0:
        raise IncompatibleError("the store has no rows to take the teacher's confidence from")
    return total / rows


def required_weight(store: StoreColumns, method: str) -> Tensor:
    """The store's class weights.

    Raises:
        IncompatibleError: the store keeps none.
    """
    if store.class_weight is None:
        raise IncompatibleError(
            f"method {method} needs class_weight (the teacher's last layer), which this store does not keep",
            hint="--set similarity=mean uses class means instead; or run dump-teacher with --head NAME",
        )
    return store.class_weight
