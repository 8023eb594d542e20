"""Losses that treat the label apart from the other classes: dkd and nkd. One value per row.

Both need the distribution over i != y, which the store gives for any label: head without y, and one bucket for the tail
(never y). Exact at k = K; below it the tail's inner shape is left free, as in `ghost_kl`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.targets.method import LossInputs
from kdcache.targets.soft import SoftTargets
from kdcache.targets.split import TeacherSplit, log_label_probs, split_student, split_teacher, student_label_log_probs


def _without_label(teacher: TeacherSplit, label: Tensor, named: Tensor, tail: Tensor, log_other: Tensor) -> Tensor:
    """(B, h + 1) log-probabilities given i != y: the named classes, then the tail; 0 where there is none."""
    is_label = teacher.index == label[:, None]
    kept = teacher.named & ~is_label
    inside = (named - log_other[:, None]).masked_fill(~kept, 0.0)
    return torch.cat([inside, (tail - log_other).masked_fill(teacher.empty, 0.0)[:, None]], dim=1)


def nontarget_terms(
    logits: Tensor, targets: SoftTargets, temperature: float | Tensor, log_other_p: Tensor, log_other_q: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The teacher's and the student's distributions over the classes that are not the label.

    Args:
        logits, targets, temperature: as for every loss.
        log_other_p, log_other_q: (B,) log(1 - p_y^T) and log(1 - q_y^T).

    Returns:
        phat (B, h + 1), 0 in unused places; log phat and log qhat (B, h + 1), 0 there.
    """
    teacher = split_teacher(targets, temperature)
    student = split_student(logits, teacher, temperature)
    label = targets.label
    log_p = _without_label(teacher, label, teacher.log_prob, teacher.log_tail, log_other_p)
    log_q = _without_label(teacher, label, student.log_prob, student.log_tail, log_other_q)
    kept = torch.cat([teacher.named & (teacher.index != label[:, None]), ~teacher.empty[:, None]], dim=1)
    return log_p.exp() * kept, log_p, log_q


def dkd_divergence(logits: Tensor, inputs: LossInputs, temperature: float | Tensor) -> Tensor:
    """target_weight * KL(b^T || b^S) + nontarget_weight * KL(phat || qhat); (B,) nats without T^2.

    b = (p_y, 1 - p_y) for the teacher and alike for the student. Source: Zhao et al. 2022, "TCKD" and "NCKD".
    """
    targets = inputs.targets
    log_p, log_other_p = log_label_probs(targets, temperature)
    log_q, log_other_q = student_label_log_probs(logits, targets.label, temperature)
    target = log_p.exp() * (log_p - log_q) + log_other_p.exp() * (log_other_p - log_other_q)
    p, log_phat, log_qhat = nontarget_terms(logits, targets, temperature, log_other_p, log_other_q)
    nontarget = (p * (log_phat - log_qhat)).sum(dim=1)
    return inputs.number("target_weight") * target + inputs.number("nontarget_weight") * nontarget


def warm_up(inputs: LossInputs) -> float:
    """Weight of the soft part: grows linearly over the first `warmup_epochs` epochs; 1 without a position."""
    epochs, epoch = inputs.number("warmup_epochs"), inputs.context.epoch
    return 1.0 if epoch is None or epochs == 0 else min(epoch / epochs, 1.0)


def dkd_loss(inputs: LossInputs) -> Tensor:
    """Decoupled distillation; (B,) nats."""
    soft = inputs.temperature**2 * dkd_divergence(inputs.student, inputs, inputs.temperature)
    return inputs.number("hard_weight") * inputs.hard() + warm_up(inputs) * soft


def nkd_loss(inputs: LossInputs) -> Tensor:
    """Normalised distillation: -p_y log q_y at T=1 and gamma T^2 H(phat^T, qhat^T) over i != y; (B,) nats."""
    targets, t = inputs.targets, inputs.temperature
    log_p, _ = log_label_probs(targets, 1.0)
    log_q, log_others = student_label_log_probs(inputs.student, targets.label, 1.0)
    if t != 1:
        _, log_others = student_label_log_probs(inputs.student, targets.label, t)
    p, _, log_qhat = nontarget_terms(inputs.student, targets, t, log_label_probs(targets, t)[1], log_others)
    other = -(p * log_qhat).sum(dim=1)
    soft = -log_p.exp() * log_q + inputs.number("gamma") * inputs.temperature**2 * other
    return inputs.number("hard_weight") * inputs.hard() + soft
