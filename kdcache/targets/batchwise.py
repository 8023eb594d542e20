"""Losses that compare the batch as a whole: dist and mlkd. One value () per batch.

They are the only ones that rebuild dense (B, K) teacher rows: exact at k = K, below it with the tail's mass spread
evenly. Under several processes each sees its own part of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kdcache.targets.method import LossInputs
from kdcache.targets.mixed import mixed_cross_entropy
from kdcache.targets.soft import SoftTargets
from kdcache.targets.split import split_teacher


def dense_rows(targets: SoftTargets, temperature: float) -> Tensor:
    """(B, K) teacher probabilities at T: named classes as they are, the tail's mass spread evenly; rows sum to 1."""
    teacher = split_teacher(targets, temperature)
    level = teacher.tail_prob / teacher.count.clamp(min=1)
    rows = level[:, None].expand(-1, targets.num_classes).clone()
    # the repeated label's column goes to an extra place, so that it cannot overwrite the class it repeats
    padded = torch.cat([rows, torch.zeros_like(rows[:, :1])], dim=1)
    place = teacher.index.masked_fill(~teacher.named, targets.num_classes)
    return padded.scatter(1, place, teacher.prob)[:, :-1]


def one_minus_pearson(first: Tensor, second: Tensor) -> Tensor:
    """1 - mean over the rows of the Pearson correlation of two (M, L) tensors; ()."""
    first = first - first.mean(dim=1, keepdim=True)
    second = second - second.mean(dim=1, keepdim=True)
    # the square root of a sum that may be 0 has an infinite slope there; 1e-24 is far below any real one
    norms = (first.square().sum(dim=1) + 1e-24).sqrt() * (second.square().sum(dim=1) + 1e-24).sqrt()
    return 1 - ((first * second).sum(dim=1) / (norms + 1e-8)).mean()  # 1e-8 as in the method's public code


def dist_loss(inputs: LossInputs) -> Tensor:
    """Cross-entropy and T^2 (beta * rows + gamma * columns) of 1 - Pearson(q^T, p^T); () nats."""
    student = (inputs.student / inputs.temperature).softmax(dim=1)
    teacher = dense_rows(inputs.targets, inputs.temperature).to(student.dtype)
    rows = one_minus_pearson(student, teacher)
    columns = one_minus_pearson(student.T, teacher.T)
    soft = inputs.number("beta") * rows + inputs.number("gamma") * columns
    return inputs.number("hard_weight") * inputs.hard().mean() + inputs.temperature**2 * soft


def mlkd_loss(inputs: LossInputs) -> Tensor:
    """Multi-level distillation: KL, batch and class Gram terms, summed over temperatures, over one or two views; ().

    The second view (`second=` of the call) adds the same soft terms; the hard part is the mean over the views given.
    """
    views = [(inputs.student, inputs.targets)]
    if inputs.second is not None:
        views.append(inputs.second)
    eps = inputs.number("hard_smoothing")
    hard = torch.stack(
        [mixed_cross_entropy(logits, inputs.labels, of.mix, smoothing=eps).mean() for logits, of in views]
    ).mean()
    temperatures = inputs.options["temperatures"]
    assert isinstance(temperatures, tuple)
    soft = torch.stack([_levels(logits, targets, t) for logits, targets in views for t in temperatures]).sum()
    return inputs.number("hard_weight") * hard + inputs.number("soft_weight") * soft


def _levels(logits: Tensor, targets: SoftTargets, temperature: float) -> Tensor:
    """T^2 KL + |p p' - q q'|^2 / B + |p' p - q' q|^2 / K at one temperature; ()."""
    log_q = (logits / temperature).log_softmax(dim=1)
    p, q = dense_rows(targets, temperature).to(log_q.dtype), log_q.exp()
    instance = temperature**2 * functional.kl_div(log_q, p, reduction="batchmean")
    batch = (p @ p.T - q @ q.T).square().sum() / p.shape[0]
    classes = (p.T @ p - q.T @ q).square().sum() / p.shape[1]
    return instance + batch + classes
