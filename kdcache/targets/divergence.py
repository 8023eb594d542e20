"""KL(teacher || student) at one temperature from a split, for every choice of what the tail means.

Each function returns (B,) nats without the T^2 factor; derivations and gradients: docs/methods.md#kd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.errors import ConfigError
from kdcache.targets.soft import SoftTargets
from kdcache.targets.split import StudentSplit, TeacherSplit, split_student, split_teacher

TAILS = ("auto", "full", "ghost", "uniform", "prior", "decoupled", "renormalised")


def head_divergence(teacher: TeacherSplit, student: StudentSplit) -> Tensor:
    """Sum over the named classes of p (log p - log q); (B,), may be negative on its own."""
    return (teacher.prob * (teacher.log_prob - student.log_prob)).sum(dim=1)


def full_kl(logits: Tensor, targets: SoftTargets, temperature: float | Tensor) -> Tensor:
    """KL over all K classes; needs every class: k = K.

    Raises:
        ConfigError: the targets keep fewer than K classes.
    """
    if targets.topk != targets.num_classes:
        raise ConfigError(
            f"tail=full needs all {targets.num_classes} classes, the targets keep {targets.topk}",
            hint="choose tail=ghost, or run dump-teacher with --topk all",
        )
    teacher = split_teacher(targets, temperature)
    return head_divergence(teacher, split_student(logits, teacher, temperature))


def ghost_kl(logits: Tensor, targets: SoftTargets, temperature: float | Tensor) -> Tensor:
    """KL of k+1 buckets: the named classes and one for all others. Full KL minus pi * KL(tail || tail), so never above
    it; its gradient on the named classes is that of the full KL.
    """
    teacher = split_teacher(targets, temperature)
    return bucket_divergence(teacher, split_student(logits, teacher, temperature))


def bucket_divergence(teacher: TeacherSplit, student: StudentSplit) -> Tensor:
    """KL over the named classes and one bucket for the tail; (B,). The two may stand at different temperatures."""
    return head_divergence(teacher, student) + teacher.tail_prob * (teacher.log_tail - student.log_tail)


def uniform_kl(
    logits: Tensor, targets: SoftTargets, temperature: float | Tensor, *, label_named: bool = True
) -> Tensor:
    """KL against a target whose tail mass is spread evenly over the n classes of the tail.

    Args:
        logits: (B, K) student.
        targets: B rows.
        temperature: T.
        label_named: False gives the KD-topk target (S = the top k alone).
    """
    teacher = split_teacher(targets, temperature, label_named=label_named)
    student = split_student(logits, teacher, temperature)
    divisor = teacher.count.clamp(min=1)
    named_sum = student.named_scaled.masked_fill(~teacher.named, 0.0).sum(dim=1)
    mean_log_q = (student.total_scaled - named_sum) / divisor - student.log_partition
    tail = teacher.tail_prob * (teacher.log_tail - divisor.log() - mean_log_q)
    return head_divergence(teacher, student) + tail


def prior_kl(logits: Tensor, targets: SoftTargets, temperature: float | Tensor, prior: Tensor) -> Tensor:
    """KL against a target whose tail mass follows a given shape.

    Args:
        logits: (B, K) student.
        targets: B rows.
        temperature: T.
        prior: (B, K) positive weights, dense by nature (rows of a similarity matrix); only their shape inside the tail
            counts.
    """
    teacher = split_teacher(targets, temperature)
    student = split_student(logits, teacher, temperature)
    shape = prior.to(logits.dtype).scatter(1, teacher.index, 0.0)
    shape = shape / shape.sum(dim=1, keepdim=True).clamp(min=torch.finfo(shape.dtype).tiny)
    entropy = -torch.xlogy(shape, shape).sum(dim=1)
    cross = student.log_partition - (shape * logits).sum(dim=1) / temperature
    return head_divergence(teacher, student) + teacher.tail_prob * (teacher.log_tail - entropy + cross)


def decoupled_kl(
    logits: Tensor, targets: SoftTargets, temperature: float | Tensor, *, head_weight: float = 1.0
) -> Tensor:
    """Binary KL of (head, tail) masses plus `head_weight` times the KL inside the renormalised head.

    With weight a (the head's mass) instead of a constant this is `ghost_kl`, whose head starves when pi is large.
    """
    teacher = split_teacher(targets, temperature)
    student = split_student(logits, teacher, temperature)
    head_p = teacher.log_prob.masked_fill(~teacher.named, -torch.inf).logsumexp(dim=1)
    head_q = student.log_prob.masked_fill(~teacher.named, -torch.inf).logsumexp(dim=1)
    masses = head_p.exp() * (head_p - head_q) + teacher.tail_prob * (teacher.log_tail - student.log_tail)
    return masses + head_weight * _inside_head(teacher, student, head_p, head_q)


def _inside_head(teacher: TeacherSplit, student: StudentSplit, head_p: Tensor, head_q: Tensor) -> Tensor:
    """KL of the two distributions conditioned on the head; (B,)."""
    log_p = teacher.log_prob - head_p[:, None]
    log_q = student.log_prob - head_q[:, None]
    return (log_p.exp() * teacher.named * (log_p - log_q).masked_fill(~teacher.named, 0.0)).sum(dim=1)


def renormalised_kl(logits: Tensor, targets: SoftTargets, temperature: float | Tensor) -> Tensor:
    """KL against the teacher's named classes scaled to sum to 1, the tail set to 0: overconfident by the tail's mass,
    with a gradient error of exactly 2 pi / T in L1, and sometimes the best student of a short schedule.
    """
    teacher = split_teacher(targets, temperature)
    student = split_student(logits, teacher, temperature)
    head_p = teacher.log_prob.masked_fill(~teacher.named, -torch.inf).logsumexp(dim=1)
    return _inside_head(teacher, student, head_p, torch.zeros_like(head_p))
