"""What a teacher can give, read from its store of all classes: how right and how sure it is, how much its confidence
differs by example, and what it says of the classes that are not the label. No teacher is run.

Confidence alone changes every such figure at T = 1, so they are given a second time at a level: the temperature at
which the mean p_y is the same for every teacher.

With r_n the teacher's opinion of row n over the K - 1 other classes, renormalised, and m_y its mean over the rows of
class y, the chain rule of entropy splits what it says beyond "all others alike" into two parts, in nats:

    log(K-1) - mean H(r_n)  =  [log(K-1) - mean H(m_y)]  +  [mean H(m_y) - mean H(r_n)]
                                relations of classes          of the example
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from kdcache.errors import IncompatibleError
from kdcache.loader.target_store import TargetStore
from kdcache.metrics import EvaluationSums
from pipelines.partial_kd.opinion import ALPHA, structure_of
from pipelines.teacher_sweep.inference import rank_correlation

TEMPERATURES = (0.5, 1.0, 2.0, 4.0, 8.0)
COLDEST, HOTTEST = 1e-2, 1e3  # where the level's temperature is looked for


def measure(
    store: TargetStore, reference: TargetStore, groups: Sequence[Sequence[int]], *, level: float
) -> dict[str, Any]:
    """Every figure of one store of all classes.

    Args:
        store: of the teacher; reference: of a plain teacher, over the same rows.
        groups: classes that are alike, each class in one group; none where nothing is known.
        level: mean p_y of the second comparison.

    Returns:
        top1, nll (nats), ece, p_y (mean), sure (share of rows with a class above 0.9).
        omega_sd: T -> sd over rows of the rescaling factor for a student that knows nothing, alpha = 0.9; "level" too.
        at: "1" and "level" -> `opinion` below, each with the reference at its own temperature of that level.
        level_temperature: None where no T gives the level.
        weights: structure of the last layer's cosines by `groups`.

    Raises:
        IncompatibleError: a store keeps fewer than K classes.
    """
    log_prob, label = dense_log_probs(store)
    known, known_label = dense_log_probs(reference)
    assert torch.equal(label, known_label), "the reference has other rows"
    at_level, known_level = (level_temperature(one, label, level) for one in (log_prob, known))
    pairs = {"1": (1.0, 1.0)} | ({"level": (at_level, known_level)} if at_level and known_level else {})
    prob = log_prob.softmax(dim=1)
    own = prob.gather(1, label[:, None])[:, 0]
    sums = EvaluationSums("cpu")
    sums.add(log_prob, label)
    judged = sums.result()
    weight = store.class_weight
    cosines = None
    if weight is not None:
        unit = functional.normalize(weight.double(), dim=1)
        cosines = (unit @ unit.T).numpy()
    return {
        "top1": judged.top1,
        "nll": -float(log_odds_parts(log_prob, label)[0].mean()),
        "ece": judged.ece,
        "p_y": float(own.mean()),
        "sure": float((prob.amax(dim=1) > 0.9).double().mean()),
        "omega_sd": {f"{t:g}": _omega_sd(log_prob, label, t) for t in TEMPERATURES},
        "level_temperature": at_level,
        "at": {
            name: opinion(_tempered(log_prob, t), _tempered(known, known_t), label, groups, cosines)
            for name, (t, known_t) in pairs.items()
        },
        "weights": _grouping(cosines, groups),
    }


def dense_log_probs(store: TargetStore) -> tuple[Tensor, Tensor]:
    """Log p (N, K) float64 and labels (N,) of view 0 of a store of all classes.

    Raises:
        IncompatibleError: it keeps fewer than K classes.
    """
    if store.topk < store.num_classes:
        raise IncompatibleError(
            f"{store.location}: keeps {store.topk} of {store.num_classes} classes; the measures need all of them",
            hint="kdcache dump-teacher --topk all",
        )
    log_probs, labels = [], []
    for targets in store.batches():
        log_probs.append(torch.empty(len(targets), store.num_classes).scatter_(1, targets.index, targets.log_prob))
        labels.append(targets.label)
    return torch.cat(log_probs).double(), torch.cat(labels)


def opinion(
    log_prob: Tensor,
    known: Tensor,
    label: Tensor,
    groups: Sequence[Sequence[int]],
    cosines: NDArray[np.float64] | None,
) -> dict[str, Any]:
    """How a teacher's opinion differs by row and what it says of the classes that are not the label.

    Args:
        log_prob, known: (N, K) float64 of the teacher and of the reference, tempered; label: (N,).
        groups: of the classes; cosines: (K, K) of the last layer's rows.

    Returns:
        p_y_sd: sd over rows of p_y. rank: Spearman correlation over rows of the label's log-odds with the reference's.
        entropy: of the other classes, as a share of log(K-1).
        relations, example: the two parts of the module's equation, nats.
        group_share: mean share of the other classes' mass that is on classes of the label's group, over rows whose
        group has others; group_chance: what it would be if all others were alike.
        neighbours, within, between: of the correlations over rows, by group.
        reference: correlation over pairs of classes of the class means m with the reference's; cosines: with those of
        the last layer.
    """
    classes = log_prob.shape[1]
    prob = log_prob.exp()
    rest = other_classes(log_prob, label)
    mean, seen = class_means(rest, label, classes)
    share = torch.bincount(label, minlength=classes).double() / len(label)
    row_entropy = float(_entropy(rest).mean())
    mean_entropy = float((share * _entropy(mean))[seen].sum())
    pairs = ~torch.eye(classes, dtype=torch.bool) & seen[:, None]
    reference = class_means(other_classes(known, label), label, classes)[0]
    return {
        "p_y_sd": float(prob.gather(1, label[:, None]).std()),
        "rank": rank_correlation(log_odds(log_prob, label).tolist(), log_odds(known, label).tolist()),
        "entropy": row_entropy / math.log(classes - 1),
        "relations": math.log(classes - 1) - mean_entropy,
        "example": mean_entropy - row_entropy,
        **_group_share(rest, label, groups),
        **_grouping(torch.corrcoef(prob.T).nan_to_num().numpy(), groups),
        "reference": _correlation(mean[pairs], reference[pairs]),
        "cosines": None if cosines is None else _correlation(mean[pairs], torch.from_numpy(cosines)[pairs]),
    }


def level_temperature(log_prob: Tensor, label: Tensor, level: float) -> float | None:
    """The temperature at which the mean p_y is `level`, by bisection; None where neither end is beyond it.

    Args:
        log_prob: (N, K) float64; label: (N,).
        level: between 1/K and the share of rows the teacher is right on.
    """

    def mean(log_t: float) -> float:
        prob = (log_prob / math.exp(log_t)).softmax(dim=1)
        return float(prob.gather(1, label[:, None]).mean())

    low, high = math.log(COLDEST), math.log(HOTTEST)
    if not mean(high) < level < mean(low):
        return None
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) > level else (low, middle)
    return math.exp((low + high) / 2)


def log_odds_parts(log_prob: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Log p_y and log(1 - p_y), (N,) each; the second from the other classes, which keep digits that p_y has lost."""
    at = label[:, None]
    own = log_prob.gather(1, at)[:, 0]
    rest = log_prob.scatter(1, at, -torch.inf).logsumexp(dim=1)
    whole = torch.logaddexp(own, rest)
    return own - whole, rest - whole


def log_odds(log_prob: Tensor, label: Tensor) -> Tensor:
    """Log p_y - log(1 - p_y), (N,)."""
    own, rest = log_odds_parts(log_prob, label)
    return own - rest


def other_classes(log_prob: Tensor, label: Tensor) -> Tensor:
    """(N, K) probabilities of the classes that are not the label, renormalised; 0 at the label."""
    return log_prob.scatter(1, label[:, None], -torch.inf).softmax(dim=1)


def class_means(rest: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """(K, K) means of (N, K) over the rows of each label, and (K,) whether a class has rows."""
    count = torch.bincount(label, minlength=classes)
    sums = torch.zeros(classes, classes, dtype=rest.dtype).index_add_(0, label, rest)
    return sums / count.clamp(min=1)[:, None], count > 0


def _tempered(log_prob: Tensor, temperature: float) -> Tensor:
    return (log_prob / temperature).log_softmax(dim=1)


def _omega_sd(log_prob: Tensor, label: Tensor, temperature: float) -> float:
    """Q = 1/K: omega is linear in p_y, so its sd is that of p_y times a constant."""
    own = (log_prob / temperature).softmax(dim=1).gather(1, label[:, None])[:, 0]
    constant = ALPHA * temperature / (1 - 1 / log_prob.shape[1])
    return constant * float(own.std())


def _group_share(rest: Tensor, label: Tensor, groups: Sequence[Sequence[int]]) -> dict[str, float | None]:
    same = _same_group(groups, rest.shape[1])
    companions = same.sum(dim=1)
    asked = companions[label] > 0
    if not bool(asked.any()):
        return {"group_share": None, "group_chance": None}
    found = (rest * same[label].double()).sum(dim=1)[asked]
    chance = companions[label][asked].double() / (rest.shape[1] - 1)
    return {"group_share": float(found.mean()), "group_chance": float(chance.mean())}


def _grouping(relations: NDArray[np.float64] | None, groups: Sequence[Sequence[int]]) -> dict[str, float | None]:
    if relations is None or not groups:
        return {"within": None, "between": None, "neighbours": None}
    number = {label: i for i, group in enumerate(groups) for label in group}
    found = structure_of(relations, [number[label] for label in range(len(relations))])
    return {"within": found.within, "between": found.between, "neighbours": found.neighbours}


def _same_group(groups: Sequence[Sequence[int]], classes: int) -> Tensor:
    """(K, K) whether two different classes are of one group."""
    same = torch.zeros(classes, classes, dtype=torch.bool)
    for group in groups:
        for label in group:
            same[label, list(group)] = True
    return same & ~torch.eye(classes, dtype=torch.bool)


def _entropy(prob: Tensor) -> Tensor:
    return -(prob * prob.clamp(min=1e-300).log()).sum(dim=-1)


def _correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.double(), other.double()]))[0, 1])
