"""Head and tail of teacher and student at one temperature: the shared first half of every sparse loss.

The head is S = top k and label (or the top k alone); everything outside it is one number per row. Nothing here builds a
(B, K) tensor for the teacher. The divergences are in `divergence.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdcache.targets.head_sums import head_sums
from kdcache.targets.soft import SoftTargets
from kdcache.targets.tail import log_power_sum, tail_of, tail_with_label


@dataclass(frozen=True, kw_only=True)
class TeacherSplit:
    """The teacher at T over h named classes and the rest.

    Attributes:
        index: (B, h) int64 classes.
        named: (B, h) bool; False marks a column that repeats the label and counts for nothing.
        log_prob: (B, h) log p^T in nats; 0 where not named.
        prob: (B, h) p^T; 0 where not named.
        log_tail: (B,) log pi^T; 0 where the tail is empty.
        tail_prob: (B,) pi^T; 0 where the tail is empty.
        count: (B,) float, classes in the tail.
        empty: (B,) bool, the tail is empty.
        log_partition: (B,) log of the sum of p^(1/T) over all classes.
    """

    index: Tensor
    named: Tensor
    log_prob: Tensor
    prob: Tensor
    log_tail: Tensor
    tail_prob: Tensor
    count: Tensor
    empty: Tensor
    log_partition: Tensor


@dataclass(frozen=True, kw_only=True)
class StudentSplit:
    """The student at T over the teacher's split.

    Attributes:
        named_scaled: (B, h) logits / T at the teacher's named classes.
        total_scaled: (B,) sum of logits / T over all K classes.
        log_partition: (B,) logsumexp of logits / T over all K classes.
        log_prob: (B, h) log q^T at the named classes.
        log_tail: (B,) log rho^T; 0 where the tail is empty.
    """

    named_scaled: Tensor
    total_scaled: Tensor
    log_partition: Tensor
    log_prob: Tensor
    log_tail: Tensor


def split_teacher(targets: SoftTargets, temperature: float | Tensor, *, label_named: bool = True) -> TeacherSplit:
    """The teacher's named classes and tail mass at T, normalised over all K classes.

    Args:
        targets: B rows.
        temperature: T > 0, a float or a tensor that broadcasts to (B,).
        label_named: S = top k and label (k + 1 columns below k = K); else S = top k and the label joins the tail.

    The answer for a plain number T is kept with the targets.
    """
    if isinstance(temperature, Tensor) or targets.log_prob.requires_grad:
        return _split_teacher(targets, temperature, label_named)
    key = (float(temperature), label_named)
    found: TeacherSplit | None = targets.splits.get(key)
    if found is None:
        found = _split_teacher(targets, temperature, label_named)
        if not torch.is_inference_mode_enabled():  # such tensors could not take part in a later backward pass
            targets.splits[key] = found
    return found


def _split_teacher(targets: SoftTargets, temperature: float | Tensor, label_named: bool) -> TeacherSplit:
    complete = targets.topk == targets.num_classes
    tail = tail_of(targets) if label_named or complete else tail_with_label(targets)
    index, log_prob = targets.index, targets.log_prob
    named = torch.ones_like(index, dtype=torch.bool)
    if label_named and not complete:
        index = torch.cat([index, targets.label[:, None]], dim=1)
        log_prob = torch.cat([log_prob, targets.label_log_prob[:, None]], dim=1)
        named = torch.cat([named, ~targets.label_in_topk[:, None]], dim=1)
    b = 1.0 / temperature
    powered = log_prob * _column(b)
    unnamed = ~named
    # masked after the product: the gradient of b * -inf would be NaN
    head = powered.masked_fill(unnamed, -torch.inf)
    partition = head.logsumexp(dim=1)
    empty = tail.count == 0
    if complete:
        log_tail = tail_prob = torch.zeros_like(partition)
    else:
        tail_sum = log_power_sum(tail, temperature)
        partition = torch.logaddexp(partition, tail_sum)
        log_tail = (tail_sum - partition).masked_fill(empty, 0.0)
        tail_prob = (tail_sum - partition).exp()
    return TeacherSplit(
        index=index,
        named=named,
        log_prob=(powered - partition[:, None]).masked_fill(unnamed, 0.0),
        prob=(head - partition[:, None]).exp(),
        log_tail=log_tail,
        tail_prob=tail_prob,
        count=tail.count,
        empty=empty,
        log_partition=partition,
    )


def split_student(logits: Tensor, teacher: TeacherSplit, temperature: float | Tensor) -> StudentSplit:
    """The student's log-probabilities on the teacher's split.

    The tail mass is logsumexp over the complement of the head, never log(1 - sum), which loses every digit once the
    head holds all but 1e-7 of the mass.

    Args:
        logits: (B, K) float32 or float64.
        teacher: the split to follow.
        temperature: T > 0; a tensor is differentiated too.
    """
    if teacher.index.shape[1] == logits.shape[1]:  # k = K: the named classes are all there is
        named_scaled = (logits / _column(temperature)).gather(1, teacher.index)
        partition, total = named_scaled.logsumexp(dim=1), named_scaled.sum(dim=1)
        tail_sum = partition
    else:
        if isinstance(temperature, Tensor):
            named_scaled, tail_sum, total = _tempered_sums(logits, teacher.index, temperature)
        else:
            named_scaled, tail_sum, total = head_sums(logits, teacher.index, temperature)
        tail_sum = tail_sum.masked_fill(teacher.empty, torch.finfo(logits.dtype).min)
        head_sum = named_scaled.masked_fill(~teacher.named, -torch.inf).logsumexp(dim=1)
        partition = torch.logaddexp(head_sum, tail_sum)
    return StudentSplit(
        named_scaled=named_scaled,
        total_scaled=total,
        log_partition=partition,
        log_prob=named_scaled - partition[:, None],
        log_tail=(tail_sum - partition).masked_fill(teacher.empty, 0.0),
    )


def _column(temperature: float | Tensor) -> float | Tensor:
    """A temperature per row as a column, so that it divides (B, K)."""
    return temperature[:, None] if isinstance(temperature, Tensor) and temperature.ndim == 1 else temperature


def _tempered_sums(logits: Tensor, index: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`head_sums`, differentiable in the temperature as well."""
    scaled = logits / _column(temperature)
    tail = scaled.scatter(1, index, torch.finfo(scaled.dtype).min).logsumexp(dim=1)
    return scaled.gather(1, index), tail, scaled.sum(dim=1)


def log_label_probs(targets: SoftTargets, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """Log p_y^T and log(1 - p_y^T), each (B,) nats; the second is summed over the other classes, not subtracted."""
    teacher = split_teacher(targets, temperature)
    is_label = (teacher.index == targets.label[:, None]) & teacher.named
    log_label = teacher.log_prob.masked_fill(~is_label, 0.0).sum(dim=1)
    others = teacher.log_prob.masked_fill(is_label | ~teacher.named, -torch.inf)
    tail = teacher.log_tail.masked_fill(teacher.empty, -torch.inf)
    return log_label, torch.cat([others, tail[:, None]], dim=1).logsumexp(dim=1)


def student_label_log_probs(logits: Tensor, label: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """Log q_y^T and log(1 - q_y^T) of the student, each (B,) nats, differentiable, without log(1 - q)."""
    if isinstance(temperature, Tensor):
        named, others, _ = _tempered_sums(logits, label[:, None], temperature)
    else:
        named, others, _ = head_sums(logits, label[:, None], temperature)
    at_label = named[:, 0]
    partition = torch.logaddexp(at_label, others)
    return at_label - partition, others - partition
