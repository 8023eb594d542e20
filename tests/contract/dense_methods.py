"""Each method's loss from full logits, written independently of kdcache/targets: textbook formulas on (B, K)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from tests.contract.method_cases import Batch

Dense = Callable[[Batch, Tensor, float, float, Mapping[str, object]], Tensor]


def blend(batch: Batch, student: Tensor, target: Tensor, temperature: float, alpha: float) -> Tensor:
    hard = functional.cross_entropy(student, batch.label, reduction="none")
    return (1 - alpha) * hard + alpha * temperature**2 * kl(target, student / temperature)


def kl(target: Tensor, scaled: Tensor) -> Tensor:
    return functional.kl_div(scaled.log_softmax(1), target, reduction="none").sum(1)


def ce(batch: Batch, student: Tensor, temperature: float, alpha: float, options: Mapping[str, object]) -> Tensor:
    return functional.cross_entropy(student, batch.label, reduction="none")


def ls(batch: Batch, student: Tensor, temperature: float, alpha: float, options: Mapping[str, object]) -> Tensor:
    return functional.cross_entropy(student, batch.label, reduction="none", label_smoothing=0.1)


def kd(batch: Batch, student: Tensor, temperature: float, alpha: float, options: Mapping[str, object]) -> Tensor:
    return blend(batch, student, (batch.teacher / temperature).softmax(1), temperature, alpha)


def topk_target(teacher: Tensor, temperature: float, topk: int) -> Tensor:
    prob = (teacher / temperature).softmax(1)
    kept = prob.topk(topk, 1)
    rest = (1 - kept.values.sum(1, keepdim=True)) / max(prob.shape[1] - topk, 1)
    return rest.expand_as(prob).scatter(1, kept.indices, kept.values)


def pt_target(batch: Batch, temperature: float, shape: Tensor | None = None) -> Tensor:
    prob = (batch.teacher / temperature).softmax(1)
    own = prob.gather(1, batch.label[:, None])
    if shape is None:
        shape = torch.ones_like(prob)
    shape = shape.scatter(1, batch.label[:, None], 0)
    return ((1 - own) * shape / shape.sum(1, keepdim=True)).scatter(1, batch.label[:, None], own)


def kd_pt(batch: Batch, student: Tensor, temperature: float, alpha: float, options: Mapping[str, object]) -> Tensor:
    return blend(batch, student, pt_target(batch, temperature), temperature, alpha)


def similarity(batch: Batch, options: Mapping[str, object], weight: Tensor, temperature: float) -> Tensor:
    """(K, K) R: from weights at the given power and beta, or class means of the batch."""
    if options.get("similarity") == "mean":
        prob = (batch.teacher / temperature).softmax(1)
        rows = [
            prob[batch.label == c].mean(0) if (batch.label == c).any() else torch.full_like(prob[0], 1 / prob.shape[1])
            for c in range(prob.shape[1])
        ]
        return torch.stack(rows)
    unit = functional.normalize(weight.double(), dim=1)
    cosine = unit @ unit.T
    power = float(str(options.get("power", 1.0)))
    return (cosine.sign() * cosine.abs().pow(power) / float(str(options["beta"]))).softmax(1)
