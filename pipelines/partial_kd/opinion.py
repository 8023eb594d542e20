"""What a teacher's store can give a student, measured: confidence per example, and relations between classes.

Everything is read from a store in one pass for each view; no teacher is run. Tables and plots are `diagnosis`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from kdcache.errors import IncompatibleError
from kdcache.loader.target_store import TargetStore
from kdcache.targets.methods import find_method
from kdcache.targets.rescaling import gradient_rescaling, measured_rescaling, summary
from kdcache.targets.split import log_label_probs

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
SHOWN = (1.0, 4.0)  # of these, in the tables of methods and in matrices
METHODS = ("ls", "kd", "kd-topk", "kd-pt", "kd-sim", "kd-pt+sim")
ALPHA = 0.9
LARGEST_MATRIX = 4096  # classes; a correlation matrix of more says nothing to the eye and takes gigabytes
VALUES_AT_ONCE = 2**24  # rows x classes, 64 MB in float32
ROWS_OF_METHODS = 8192  # of view 0, spread evenly


@dataclass(frozen=True, kw_only=True)
class Structure:
    """How much of a known grouping of the classes is in a matrix of their relations.

    Attributes:
        within: mean relation of two classes of one group; between: of two groups.
        separation: standard deviations (of all pairs) between these two means.
        neighbours: share of each class's nearest classes (as many as its group has others) that are of its group.
        chance: what `neighbours` would be for random relations.
    """

    within: float
    between: float
    separation: float
    neighbours: float
    chance: float


@dataclass(frozen=True, kw_only=True)
class AtTemperature:
    """A teacher's opinion of its rows at one temperature.

    Attributes:
        confidence: mean p_y^T.
        omega_mean, omega_sd: kd's gradient rescaling over rows, for a student that knows nothing, at alpha = 0.9.
        omega_low, omega_high: its 5th and 95th percentile.
        correlations: (K, K) Pearson correlation over rows of the probabilities of two classes; None where the store
            keeps fewer than K classes, or K is above 4,096.
        structure: of these correlations; None without them or without a grouping.
    """

    confidence: float
    omega_mean: float
    omega_sd: float
    omega_low: float
    omega_high: float
    correlations: NDArray[np.float64] | None
    structure: Structure | None


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """One teacher.

    Attributes:
        top1, nll: on the store's rows and views.
        sure: share of rows whose best class has more than 0.9.
        at: by temperature.
        methods: method -> temperature -> `targets.rescaling.summary` of its gradient for a student that knows nothing.
        weights: structure of the cosines of the last layer's rows; None where the store keeps no weights.
    """

    top1: float
    nll: float
    sure: float
    at: Mapping[float, AtTemperature]
    methods: Mapping[str, Mapping[float, Mapping[str, float]]]
    weights: Structure | None


def diagnose(
    store: TargetStore, groups: Sequence[int] | None = None, *, temperatures: Sequence[float] = TEMPERATURES
) -> Diagnosis:
    """Everything above, of one store.

    Args:
        store: of any k; the correlations need all K classes.
        groups: (K,) group of every class, to say whether a relation is a real one.
        temperatures: T.

    Raises:
        IncompatibleError: the store's rows mix two examples, or `groups` are not of K classes.
    """
    if groups is not None and len(groups) != store.num_classes:
        raise IncompatibleError(
            f"{store.location}: has {store.num_classes} classes, the groups name {len(groups)}",
            hint="one line for each class, in the order of the labels",
        )
    whole = store.topk == store.num_classes <= LARGEST_MATRIX
    sums = {t: _Sums(t, store.num_classes if whole else 0) for t in temperatures}
    rows, right, sure, nll = 0, 0, 0, 0.0
    for view in range(store.num_views):
        for targets in store.batches(max(1, VALUES_AT_ONCE // store.num_classes), view=view):
            rows += len(targets)
            right += int((targets.index[:, 0] == targets.label).sum())
            sure += int((targets.log_prob[:, 0].exp() > 0.9).sum())
            nll -= float(targets.label_log_prob.double().sum())
            blank = torch.zeros(len(targets), store.num_classes)
            dense = blank.scatter(1, targets.index, targets.log_prob) if whole else None
            for t, one in sums.items():
                one.omega.append(gradient_rescaling(blank, targets, temperature=t, alpha=ALPHA))
                one.confidence.append(log_label_probs(targets, t)[0].exp())
                if dense is not None:
                    one.add(torch.softmax(dense / t, dim=1))
    weight = store.class_weight
    unit = None if weight is None or groups is None else functional.normalize(weight.double(), dim=1)
    return Diagnosis(
        top1=right / rows,
        nll=nll / rows,
        sure=sure / rows,
        at={t: one.result(groups) for t, one in sums.items()},
        methods=methods_rescaling(store, temperatures=[t for t in temperatures if t in SHOWN] or temperatures[:1]),
        weights=None if unit is None or groups is None else structure_of((unit @ unit.T).numpy(), groups),
    )


def methods_rescaling(
    store: TargetStore, *, temperatures: Sequence[float], methods: Sequence[str] = METHODS
) -> dict[str, dict[float, dict[str, float]]]:
    """How every method scales cross-entropy's gradient on the label's logit, read off its own loss's gradient.

    For a student that knows nothing (q = 1/K), alpha = 0.9 and the methods' other defaults (kd-topk: k = 10); view 0,
    at most 8,192 rows. A method that wants what the store does not hold is left out.

    Args:
        store: of any k; temperatures: of the methods that have one; methods: names.

    Returns:
        method -> T -> `targets.rescaling.summary`.
    """
    count = min(ROWS_OF_METHODS, store.num_rows, max(1, VALUES_AT_ONCE // store.num_classes))
    rows = np.linspace(0, store.num_rows - 1, count).astype(np.int64)
    found: dict[str, dict[float, dict[str, float]]] = {}
    for name in methods:
        method = find_method(name)
        targets = store.targets(rows, topk=min(method.default_topk or store.topk, store.topk))
        by_temperature = {}
        for t in temperatures if method.default_temperature is not None else temperatures[:1]:
            asked = t if method.default_temperature is not None else None
            try:
                context = method.prepare(store, temperature=asked)
            except IncompatibleError:  # no weights of the last layer
                break
            logits = torch.zeros(len(targets), store.num_classes, requires_grad=True)
            alpha = ALPHA if method.default_alpha is not None else None
            loss = method(logits, targets, targets.label, temperature=asked, alpha=alpha, context=context)
            (gradient,) = torch.autograd.grad(loss.sum(), logits)
            omega = measured_rescaling(logits.detach(), gradient, targets.label)
            by_temperature[t] = summary(omega, log_label_probs(targets, t)[0].exp())
        if by_temperature:
            found[name] = by_temperature
    return found


class _Sums:
    """What one temperature needs of the rows, batch by batch.

    Args:
        temperature: T.
        classes: K, or 0 where no correlations are wanted.
    """

    def __init__(self, temperature: float, classes: int) -> None:
        self.temperature = temperature
        self.omega: list[Tensor] = []
        self.confidence: list[Tensor] = []
        self._correlations = CorrelationSums(classes) if classes else None

    def add(self, prob: Tensor) -> None:
        assert self._correlations is not None
        self._correlations.add(prob)

    def result(self, groups: Sequence[int] | None) -> AtTemperature:
        omega = torch.cat(self.omega).double()
        low, high = np.quantile(omega.numpy(), [0.05, 0.95]).tolist()
        related = None if self._correlations is None else self._correlations.result()
        return AtTemperature(
            confidence=float(torch.cat(self.confidence).double().mean()),
            omega_mean=float(omega.mean()),
            omega_sd=float(omega.std()),
            omega_low=low,
            omega_high=high,
            correlations=related,
            structure=None if related is None or groups is None else structure_of(related, groups),
        )


class CorrelationSums:
    """Pearson correlations of K columns over rows that come in batches; float64, shifted by the first row.

    Args:
        classes: K.
    """

    def __init__(self, classes: int) -> None:
        self._shift: Tensor | None = None
        self._rows = 0
        self._first = torch.zeros(classes, dtype=torch.float64)
        self._second = torch.zeros(classes, classes, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Count (B, K) values."""
        values = values.double()
        if self._shift is None:
            self._shift = values[0].clone()
        values = values - self._shift
        self._rows += len(values)
        self._first += values.sum(dim=0)
        self._second += values.T @ values

    def result(self) -> NDArray[np.float64]:
        """(K, K) float64; 0 where a column is constant."""
        covariance = self._second - torch.outer(self._first, self._first) / self._rows
        scale = covariance.diagonal().clamp(min=0).sqrt()
        product = torch.outer(scale, scale)
        found: NDArray[np.float64] = torch.where(product > 0, covariance / product.clamp(min=1e-300), 0.0).numpy()
        return found


def structure_of(relations: NDArray[np.floating], groups: Sequence[int]) -> Structure:
    """How much of a grouping is in (K, K) relations; groups of one class are left out."""
    group = np.asarray(groups)
    other = ~np.eye(len(group), dtype=bool)
    same = (group[:, None] == group) & other
    pairs = relations[other]
    within, between = float(relations[same].mean()), float(relations[other & ~same].mean())
    order = np.argsort(-np.where(other, relations, -np.inf), axis=1, kind="stable")
    found, expected = [], []
    for i, companions in enumerate(same.sum(axis=1)):
        if companions:
            found.append(float(same[i, order[i, :companions]].mean()))
            expected.append(companions / (len(group) - 1))
    return Structure(
        within=within,
        between=between,
        separation=(within - between) / max(float(pairs.std()), 1e-300),
        neighbours=float(np.mean(found)),
        chance=float(np.mean(expected)),
    )
