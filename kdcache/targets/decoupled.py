"""Losses that treat the label apart from the other classes: dkd and nkd. One value per row.

Both need the distribution over i != y, which the store gives for any label: head without y, and one bucket for the tail
(never y). Exact at k = K; below it the tail's inner shape is left free, as in `ghost_kl`.
"""

from __future__ import annotations

from torch import Tensor

from kdcache.targets.method import LossInputs
from kdcache.targets.split import apart, log_label_probs, others, split_student, split_teacher, student_label_log_probs


def dkd_divergence(logits: Tensor, inputs: LossInputs, temperature: float | Tensor) -> Tensor:
    """target_weight * KL(b^T || b^S) + nontarget_weight * KL(phat || qhat); (B,) nats without T^2.

    b = (p_y, 1 - p_y) for the teacher and alike for the student. Source: Zhao et al. 2022, "TCKD" and "NCKD".
    """
    teacher = split_teacher(inputs.targets, temperature)
    student, is_label = split_student(logits, teacher, temperature), teacher.is_label
    log_p, log_other_p = apart(teacher.log_bucket, is_label)
    log_q, log_other_q = apart(student.log_bucket, is_label)
    target = log_p.exp() * (log_p - log_q) + log_other_p.exp() * (log_other_p - log_other_q)
    log_phat = others(teacher.log_bucket, is_label)
    nontarget = (log_phat.exp() * (log_phat - others(student.log_bucket, is_label))).sum(dim=1)
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
    t = inputs.temperature
    log_p, _ = log_label_probs(inputs.targets, 1.0)
    log_q, _ = student_label_log_probs(inputs.student, inputs.targets.label, 1.0)
    teacher = split_teacher(inputs.targets, t)
    log_qhat = others(split_student(inputs.student, teacher, t).log_bucket, teacher.is_label)
    other = -(others(teacher.log_bucket, teacher.is_label).exp() * log_qhat).sum(dim=1)
    soft = -log_p.exp() * log_q + inputs.number("gamma") * t**2 * other
    return inputs.number("hard_weight") * inputs.hard() + soft
