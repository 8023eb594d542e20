"""Losses that change the logits or the temperature first: lskd, ttm, wttm, ctkd, and the virtual teacher tfkd-reg.

One value per row. What these need of the tail is its mass at another temperature, per row or differentiable in T.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.errors import ConfigError
from kdcache.targets.decoupled import dkd_divergence, warm_up
from kdcache.targets.divergence import bucket_divergence
from kdcache.targets.method import LossInputs, MethodContext, StoreColumns
from kdcache.targets.response import kd_divergence
from kdcache.targets.soft import SoftTargets
from kdcache.targets.split import split_student, split_teacher
from kdcache.targets.tail import tail_of

SMALLEST_SPREAD = 1e-7  # as in the method's public code
LOWEST_TEMPERATURE, TEMPERATURE_RANGE = 1.0, 20.0
RAMP_EPOCHS = 10.0


def teacher_spread(targets: SoftTargets) -> Tensor:
    """Unbiased standard deviation of log p (equally: of the logits) over all K classes; (B,), exact for any k."""
    tail, classes = tail_of(targets), targets.num_classes
    outside = (~targets.label_in_topk).to(tail.count.dtype)
    total = targets.log_prob.sum(dim=1) + outside * targets.label_log_prob + tail.count * tail.mean
    mean = total / classes
    squares = (targets.log_prob - mean[:, None]).square().sum(dim=1)
    squares = squares + outside * (targets.label_log_prob - mean).square()
    squares = squares + tail.count * (tail.variance + (tail.mean - mean).square())
    return (squares / max(classes - 1, 1)).sqrt()


def lskd_loss(inputs: LossInputs) -> Tensor:
    """Standardise the logits, then kd or dkd; (B,) nats.

    Dividing the teacher's logits by their spread s is a temperature of T * s, one per row, so the tail serves it; the
    student's standardised logits are multiplied by s to stand at T as well.
    """
    spread = teacher_spread(inputs.targets) + SMALLEST_SPREAD
    student = inputs.student
    deviation = student.std(dim=1, keepdim=True)
    standard = (student - student.mean(dim=1, keepdim=True)) / (deviation + SMALLEST_SPREAD)
    logits, temperature = standard * spread[:, None], inputs.temperature * spread
    squared = inputs.temperature**2
    if inputs.text("base") == "dkd":
        soft = warm_up(inputs) * squared * dkd_divergence(logits, inputs, temperature)
    else:
        soft = inputs.number("soft_weight") * squared * kd_divergence(logits, inputs, temperature)
    return inputs.number("hard_weight") * inputs.hard() + soft


def ttm_loss(inputs: LossInputs) -> Tensor:
    """Cross-entropy and KL(p^T || q at T=1); (B,) nats, no T^2: only the teacher is tempered."""
    return inputs.number("hard_weight") * inputs.hard() + inputs.number("soft_weight") * _transformed(inputs, False)


def wttm_loss(inputs: LossInputs) -> Tensor:
    """As ttm, with each row's divergence weighted by sum_j p_j^(1/T): more where the teacher is unsure; (B,) nats."""
    return inputs.number("hard_weight") * inputs.hard() + inputs.number("soft_weight") * _transformed(inputs, True)


def _transformed(inputs: LossInputs, weighted: bool) -> Tensor:
    teacher = split_teacher(inputs.targets, inputs.temperature)
    divergence = bucket_divergence(teacher, split_student(inputs.student, teacher, 1.0))
    return divergence * teacher.log_partition.exp() if weighted else divergence


class _Reversed(torch.autograd.Function):
    """The identity forwards; the gradient times -scale backwards."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradients[0], None


class LearnedTemperature(nn.Module):
    """T = 1 + 20 sigmoid(theta), one for all rows, trained to make the loss larger (its gradient is reversed)."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(()))

    def forward(self, scale: float) -> Tensor:
        """T as a tensor (), whose gradient reaches theta times -scale."""
        theta: Tensor = _Reversed.apply(self.theta, scale)
        return LOWEST_TEMPERATURE + TEMPERATURE_RANGE * torch.sigmoid(theta)


def reversal_scale(epoch: float | None) -> float:
    """0 at the start, 1 from epoch 10 on, along half a cosine; 1 without a position in training."""
    return 1.0 if epoch is None else 0.5 - 0.5 * math.cos(math.pi * min(epoch / RAMP_EPOCHS, 1.0))


def prepare_ctkd(store: StoreColumns, options: Mapping[str, object], temperature: float) -> MethodContext:
    """The learned temperature; its parameter joins the student's in the optimizer."""
    return MethodContext(module=LearnedTemperature())


def ctkd_loss(inputs: LossInputs) -> Tensor:
    """(1 - alpha) CE + alpha T^2 KL(p^T || q^T) with the learned T; (B,) nats.

    Raises:
        ConfigError: called without the context of `prepare`.
    """
    module = inputs.context.module
    if module is None:
        raise ConfigError(
            "method ctkd needs its learned temperature, found no context",
            hint="context = method.prepare(store); give context.module.parameters() to the optimizer",
        )
    temperature = module(reversal_scale(inputs.context.epoch)).to(inputs.student)
    soft: Tensor = temperature.square() * kd_divergence(inputs.student, inputs, temperature)
    return (1 - inputs.alpha) * inputs.hard() + inputs.alpha * soft


def tfkd_reg_loss(inputs: LossInputs) -> Tensor:
    """(1 - alpha) CE + alpha * soft_weight * KL(softmax(d / T) || q), d = `correct` on the label; (B,) nats.

    The public code tempers the hand-made *probabilities* d as if they were logits and leaves the student at T=1: at its
    T = 20 the target is nearly uniform. That form is kept.
    """
    student, others = inputs.student, inputs.student.shape[1] - 1
    correct = inputs.number("correct")
    gap = (correct - (1 - correct) / others) / inputs.temperature
    log_sum = math.log(others + math.exp(gap))  # gap is at most 1 / T: no overflow for T above 0.002
    log_label, log_other = gap - log_sum, -log_sum
    log_q = student.log_softmax(dim=1)
    at_label = log_q.gather(1, inputs.labels[:, None])[:, 0]
    soft = math.exp(log_label) * (log_label - at_label)
    soft = soft + math.exp(log_other) * (others * log_other - (log_q.sum(dim=1) - at_label))
    return (1 - inputs.alpha) * inputs.hard() + inputs.alpha * inputs.number("soft_weight") * soft
