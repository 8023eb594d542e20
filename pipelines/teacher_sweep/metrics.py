"""How much a teacher's opinion says about the similarity of classes, read from its store; no teacher is run.

Needs a store of all classes (`--topk all`). The metrics are ours, after the claims of Vats and Crandall 2021 that the
quality of distillation follows the similarity information in the teacher's response.
"""

from __future__ import annotations

import torch
from torch import Tensor

import kdcache
from kdcache.loader.target_store import TargetStore

METRICS = (
    "effective_classes",
    "doubt",
    "nontarget_entropy",
    "top2_gap",
    "class_structure",
    "between_within",
)


def similarity_metrics(store: TargetStore, *, temperature: float, view: int = 0) -> dict[str, float]:
    """Metrics of p^T over all rows of a view.

    Args:
        store: holds all K classes of every row.
        temperature: T.
        view: which view.

    Returns:
        effective_classes: mean of exp(entropy of p^T), from 1 to K. doubt: mean of 1 - max p^T.
        nontarget_entropy: mean entropy in nats of p^T over the classes that are not the label, renormalised.
        top2_gap: mean difference of the two largest p^T. class_structure: mean over classes of the L2 distance between
        the class's mean non-target distribution and the uniform one.
        between_within: variance of non-target distributions between classes over that within them.

    Raises:
        ConfigError: the store keeps fewer than K classes.
    """
    if store.topk < store.num_classes:
        raise kdcache.errors.ConfigError(
            f"{store.location}: keeps {store.topk} of {store.num_classes} classes; the metrics need all of them",
            hint="kdcache dump-teacher --topk all",
        )
    classes = store.num_classes
    sums = dict.fromkeys(METRICS[:4], 0.0)
    first, second = torch.zeros(classes, classes, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)
    count = torch.zeros(classes, dtype=torch.float64)
    for targets in store.batches(view=view):
        scaled = torch.empty(len(targets), classes).scatter_(1, targets.index, targets.log_prob / temperature)
        log_prob = torch.log_softmax(scaled, dim=1)
        prob = log_prob.exp()
        best = prob.topk(2, dim=1).values
        other = _without_label(log_prob, targets.label)
        sums["effective_classes"] += float(_entropy(log_prob).exp().sum())
        sums["doubt"] += float((1 - best[:, 0]).sum())
        sums["nontarget_entropy"] += float(_entropy(other).sum())
        sums["top2_gap"] += float((best[:, 0] - best[:, 1]).sum())
        plain = other.exp().double()
        first.index_add_(0, targets.label, plain)
        second.index_add_(0, targets.label, plain.square().sum(dim=1))
        count.index_add_(0, targets.label, torch.ones(len(targets), dtype=torch.float64))
    means = {name: value / store.num_rows for name, value in sums.items()}
    return {**means, **_class_metrics(first, second, count)}


def label_doubt(store: TargetStore, *, view: int = 0) -> float:
    """Mean of 1 - p_y at T = 1 over all rows of a view: the eps of label smoothing that is as unsure of the label."""
    doubt = sum(float((1 - targets.label_log_prob.exp()).sum()) for targets in store.batches(view=view))
    return min(1.0, max(0.0, doubt / store.num_rows))


def _class_metrics(first: Tensor, second: Tensor, count: Tensor) -> dict[str, float]:
    """From per-class sums of the non-target distributions (K, K), of their squared lengths (K,), and of rows (K,)."""
    seen = count > 0
    mean = first[seen] / count[seen, None]
    weight = count[seen] / count.sum()
    within = (second[seen] / count[seen] - mean.square().sum(dim=1)).clamp(min=0)
    centre = (weight[:, None] * mean).sum(dim=0)
    between = (weight * (mean - centre).square().sum(dim=1)).sum()
    uniform = torch.full_like(first, 1 / (len(first) - 1)).fill_diagonal_(0.0)[seen]
    spread = float((weight * within).sum())
    return {
        "class_structure": float((mean - uniform).square().sum(dim=1).sqrt().mean()),
        "between_within": float(between) / max(spread, 1e-12),
    }


def _without_label(log_prob: Tensor, label: Tensor) -> Tensor:
    """(B, K) log of the distribution over the other classes; -inf at the label."""
    other = log_prob.scatter(1, label[:, None], -torch.inf)
    return other - other.logsumexp(dim=1, keepdim=True)


def _entropy(log_prob: Tensor) -> Tensor:
    return -(log_prob.exp() * log_prob.clamp(min=-1e4)).sum(dim=1)
