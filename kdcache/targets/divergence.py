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


def bucket_divergence(teacher: TeacherSplit, student: StudentSplit) -> Tensor:
    """KL over the named classes and one bucket for the tail; (B,). The two may stand at different temperatures."""
    return (teacher.bucket * (teacher.log_bucket - student.log_bucket)).sum(dim=1)


def _tail_divergence(teacher: TeacherSplit, student: StudentSplit, entropy: Tensor, mean: Tensor) -> Tensor:
    """What a shape inside the tail adds to `bucket_divergence`: pi KL(shape || the student's tail); (B,).

    Args:
        teacher, student: the splits, with a tail.
        entropy: (B,) of the shape, in nats.
        mean: (B,) of the student's scaled logits under the shape.
    """
    return teacher.tail_prob * (student.scaled[:, -1] - entropy - mean)


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
    return bucket_divergence(teacher, split_student(logits, teacher, temperature))


def ghost_kl(logits: Tensor, targets: SoftTargets, temperature: float | Tensor) -> Tensor:
    """KL of k+1 buckets: the named classes and one for all others. Full KL minus pi * KL(tail || tail), so never above
    it; its gradient on the named classes is that of the full KL.
    """
    teacher = split_teacher(targets, temperature)
    return bucket_divergence(teacher, split_student(logits, teacher, temperature))


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
    student = split_student(logits, teacher, temperature, with_rest=True)
    divergence = bucket_divergence(teacher, student)
    if student.rest_scaled is None:
        return divergence
    classes = teacher.count.clamp(min=1)
    return divergence + _tail_divergence(teacher, student, classes.log(), student.rest_scaled / classes)


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
    divergence = bucket_divergence(teacher, student)
    if not teacher.has_tail:
        return divergence
    shape = prior.to(logits.dtype).scatter(1, teacher.index, 0.0)
    shape = shape / shape.sum(dim=1, keepdim=True).clamp(min=torch.finfo(shape.dtype).tiny)
    entropy = -torch.xlogy(shape, shape).sum(dim=1)
    return divergence + _tail_divergence(teacher, student, entropy, (shape * logits).sum(dim=1) / temperature)


def decoupled_kl(
    logits: Tensor, targets: SoftTargets, temperature: float | Tensor, *, head_weight: float = 1.0
) -> Tensor:
    """Binary KL of (head, tail) masses plus `head_weight` times the KL inside the renormalised head.

    With weight a (the head's mass) instead of a constant this is `ghost_kl`, whose head starves when pi is large.
    """
    teacher = split_teacher(targets, temperature)
    student = split_student(logits, teacher, temperature)
    head_p, head_q = _log_head(teacher, teacher.log_bucket), _log_head(teacher, student.log_bucket)
    masses = head_p.exp() * (head_p - head_q)
    if teacher.has_tail:
        masses = masses + teacher.tail_prob * (teacher.log_bucket[:, -1] - student.log_bucket[:, -1])
    return masses + head_weight * _inside_head(teacher, student, head_p, head_q)


def _log_head(teacher: TeacherSplit, log_bucket: Tensor) -> Tensor:
    """(B,) log of the named classes' mass."""
    return log_bucket[:, : teacher.index.shape[1]].logsumexp(dim=1)


def _inside_head(teacher: TeacherSplit, student: StudentSplit, head_p: Tensor, head_q: Tensor) -> Tensor:
    """KL of the two distributions conditioned on the head; (B,)."""
    named = teacher.index.shape[1]
    log_p = teacher.log_bucket[:, :named] - head_p[:, None]
    log_q = student.log_bucket[:, :named] - head_q[:, None]
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def renormalised_kl(logits: Tensor, targets: SoftTargets, temperature: float | Tensor) -> Tensor:
    """KL against the teacher's named classes scaled to sum to 1, the tail set to 0: overconfident by the tail's mass,
    with a gradient error of exactly 2 pi / T in L1, and sometimes the best student of a short schedule.
    """
    teacher = split_teacher(targets, temperature)
    student = split_student(logits, teacher, temperature)
    head_p = _log_head(teacher, teacher.log_bucket)
    return _inside_head(teacher, student, head_p, torch.zeros_like(head_p))
