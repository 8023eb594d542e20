"""The figures `kdcache stats` gives, as frozen data. Nothing is computed here; definitions: docs/stats.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.canonical import to_json
from kdcache.metrics import Calibration


@dataclass(frozen=True, kw_only=True)
class TeacherFigures:
    """The teacher against the labels, over all rows and views.

    Attributes:
        top1, top5: shares of rows whose label is the most probable class, or among the first five (None
            below k = 5, and with up to five classes, where it says nothing).
        nll: mean negative log-probability of the label, nats.
        ece: expected calibration error, 15 bins, in [0, 1].
        confidence: mean probability of the most probable class.
        calibration: the bins behind `ece`.
        histogram: rows in 20 equal bins of confidence.
    """

    top1: float
    top5: float | None
    nll: float
    ece: float
    confidence: float
    calibration: Calibration
    histogram: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class MassNeeded:
    """The smallest k that keeps a share of the teacher's mass, in the mean over rows.

    Attributes:
        share: of the mass, in (0, 1).
        topk: that k where the store keeps it; else None.
        at_least, at_most: what the tail's numbers allow beyond the stored k; equal to `topk` where it is known.
        estimate: a guess between the two from the tail's spread.
    """

    share: float
    topk: int | None
    at_least: int
    at_most: int
    estimate: int


@dataclass(frozen=True, kw_only=True)
class AtTemperature:
    """What k classes keep of the teacher at one temperature; every tuple has one entry for each of `topk`.

    Attributes:
        temperature: T.
        effective_classes: mean over rows of exp(entropy of p^T).
        topk: the numbers of classes the entries are for: 1 to the stored k.
        mass: mean probability of the first k classes.
        gradient_error: relative L2 error of the batch of logit gradients, see `tempered`.
        gradient_cosine: its cosine.
        kl_lost: mean KL(p^T || p^T with an even tail), nats.
        beyond: numbers of classes above the stored k, up to K; empty when all K are kept.
        mass_low, mass_high, mass_estimate: bounds and estimate of the mean mass there.
        needed: k for 90, 95 and 99 % of the mass.
        modelled: figures at this T rest on the tail's polynomial (not exact): T is neither 1 nor, with four tail
            numbers, 2, and classes are missing.
    """

    temperature: float
    effective_classes: float
    topk: tuple[int, ...]
    mass: tuple[float, ...]
    gradient_error: tuple[float, ...]
    gradient_cosine: tuple[float, ...]
    kl_lost: tuple[float, ...]
    beyond: tuple[int, ...]
    mass_low: tuple[float, ...]
    mass_high: tuple[float, ...]
    mass_estimate: tuple[float, ...]
    needed: tuple[MassNeeded, ...]
    modelled: bool


@dataclass(frozen=True, kw_only=True)
class ViewFigures:
    """How much the views of a row agree, over pairs of consecutive views (the last with the first).

    Attributes:
        pairs: (row, pair of views) pairs compared.
        top1_agreement: share of them with the same most probable class.
        symmetric_kl: mean of (KL(p||q) + KL(q||p)) / 2 at T=1, nats.
        spread: E||p_v - p||^2 / ||p||^2, with p a row's mean opinion over endlessly many views.
        error: expected relative L2 distance of the mean over V views from p, for the V of `views`.
        views: 1, 2, 4, ...
        suggested: the smallest V whose `error` is at most 10 %.
        modelled: below k = K an even tail stands in for the classes a view does not name.
    """

    pairs: int
    top1_agreement: float
    symmetric_kl: float
    spread: float
    views: tuple[int, ...]
    error: tuple[float, ...]
    suggested: int
    modelled: bool


@dataclass(frozen=True, kw_only=True)
class ClassFigures:
    """The teacher on the rows of one label: rows (over all views), top-1, mean probability of the label."""

    label: int
    name: str
    rows: int
    top1: float
    probability: float


@dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """Two classes the teacher takes for one another.

    Attributes:
        first, second: class numbers; first_name, second_name: their names, or the numbers as text.
        forward: mean probability of `second` on rows labelled `first`; backward: the other way round.
    """

    first: int
    second: int
    first_name: str
    second_name: str
    forward: float
    backward: float


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """A row on which the teacher is sure of another class than the label.

    Attributes:
        row: number.
        label, predicted: class numbers, with their names.
        margin: log of how many times more probable the first class is than the label, mean over views, nats.
        label_probability: mean over views.
        predicted_probability: of the first class, mean over views.
        row_digest: of the raw example, to find it again.
    """

    row: int
    label: int
    label_name: str
    predicted: int
    predicted_name: str
    margin: float
    label_probability: float
    predicted_probability: float
    row_digest: int


@dataclass(frozen=True, kw_only=True)
class StoreStats:
    """Everything `kdcache stats` says about a store.

    Attributes:
        location: as it was given, without credentials.
        rows, classes, topk, views: N, K, k, V.
        counted: rows that figures are over: all, or those a mask keeps (tokens that are no padding).
        policy: name of the views' augmentation.
        mixed: views mix two examples: figures against the label count the first label only.
        dataset, split, teacher, precision, store_key, root_digest: from the manifest.
        figures: teacher against labels.
        temperatures: one entry for each T asked for.
        suggested_topk: smallest stored k with gradient cosine of at least 0.99 at every T from 1 to 4 asked
            for; None: the stored k is not enough, or no such T was asked for.
        agreement: between views; None for one view.
        by_class: worst top-1 first; empty for mixed views and for K above 65,536.
        confused: most confused first; empty for mixed views and for K above 4,096.
        contradictions: largest margin first; empty for mixed views.
        bytes_on_disk, bytes_by_array, bytes_by_view: whole store; by array; by array and view (arrays with views).
        full_logits_bytes: of all K logits in float32.
        seconds, rows_per_second: time the pass took; rows of all views per second.
        class_means: (K, K) float32, mean p at T=1 by label; None where `confused` is empty. Not part of the JSON.
    """

    location: str
    rows: int
    counted: int
    classes: int
    topk: int
    views: int
    policy: str
    mixed: bool
    dataset: str
    split: str
    teacher: str
    precision: str
    store_key: str
    root_digest: str
    figures: TeacherFigures
    temperatures: tuple[AtTemperature, ...]
    suggested_topk: int | None
    agreement: ViewFigures | None
    by_class: tuple[ClassFigures, ...]
    confused: tuple[ConfusedPair, ...]
    contradictions: tuple[Contradiction, ...]
    bytes_on_disk: int
    bytes_by_array: Mapping[str, int]
    bytes_by_view: Mapping[str, list[int]]
    full_logits_bytes: int
    seconds: float
    rows_per_second: float
    class_means: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values of everything but the class means."""
        return {item.name: to_json(getattr(self, item.name)) for item in fields(self) if item.name != "class_means"}
