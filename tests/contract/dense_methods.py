"""Each method's loss from full logits, written independently of kdcache/targets: textbook formulas on (B, K)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from tests.contract.method_cases import Batch, samples

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


def number(options: Mapping[str, object], name: str, default: float) -> float:
    return float(str(options.get(name, default)))


def tfkd_reg(batch: Batch, student: Tensor, temperature: float, alpha: float, options: Mapping[str, object]) -> Tensor:
    classes = student.shape[1]
    virtual = torch.full_like(student, 0.01 / (classes - 1)).scatter(1, batch.label[:, None], 0.99)
    hard = functional.cross_entropy(student, batch.label, reduction="none")
    return (1 - alpha) * hard + alpha * kl((virtual / temperature).softmax(1), student)


def _others(batch: Batch, logits: Tensor) -> Tensor:
    """(B, K - 1): the logits of the classes that are not the label."""
    keep = torch.ones_like(logits, dtype=torch.bool).scatter(1, batch.label[:, None], False)
    return logits[keep].reshape(len(logits), -1)


def dkd_soft(batch: Batch, teacher: Tensor, student: Tensor, temperature: float, beta: float) -> Tensor:
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    p_y, q_y = (x.gather(1, batch.label[:, None])[:, 0] for x in (p, q))
    target = p_y * (p_y / q_y).log() + (1 - p_y) * ((1 - p_y) / (1 - q_y)).log()
    other = kl((_others(batch, teacher) / temperature).softmax(1), _others(batch, student) / temperature)
    return temperature**2 * (target + beta * other)


def dkd(batch: Batch, student: Tensor, temperature: float, alpha: float, options: Mapping[str, object]) -> Tensor:
    return ce(batch, student, 1, 0, options) + dkd_soft(batch, batch.teacher, student, temperature, 8.0)


def nkd(batch: Batch, student: Tensor, temperature: float, alpha: float, options: Mapping[str, object]) -> Tensor:
    hard = ce(batch, student, 1, 0, options)
    p_y = batch.teacher.softmax(1).gather(1, batch.label[:, None])[:, 0]
    p = (_others(batch, batch.teacher) / temperature).softmax(1)
    log_q = (_others(batch, student) / temperature).log_softmax(1)
    return hard + p_y * hard - 1.5 * temperature**2 * (p * log_q).sum(1)


def lskd(batch: Batch, student: Tensor, temperature: float, alpha: float, options: Mapping[str, object]) -> Tensor:
    teacher, scaled = (
        (z - z.mean(1, keepdim=True)) / (1e-7 + z.std(1, keepdim=True)) for z in (batch.teacher, student)
    )
    hard = 0.1 * ce(batch, student, 1, 0, options)
    if options.get("base") == "dkd":
        return hard + dkd_soft(batch, teacher, scaled, temperature, 8.0)
    return hard + 9 * temperature**2 * kl((teacher / temperature).softmax(1), scaled / temperature)


def ttm(batch: Batch, student: Tensor, temperature: float, alpha: float, options: Mapping[str, object]) -> Tensor:
    power = batch.teacher.softmax(1) ** (1 / temperature)
    return ce(batch, student, 1, 0, options) + kl(power / power.sum(1, keepdim=True), student)


def wttm(batch: Batch, student: Tensor, temperature: float, alpha: float, options: Mapping[str, object]) -> Tensor:
    hard = ce(batch, student, 1, 0, options)
    power = batch.teacher.softmax(1) ** (1 / temperature)
    return hard + power.sum(1) * (ttm(batch, student, temperature, alpha, options) - hard)


def ctkd(batch: Batch, student: Tensor, temperature: float, alpha: float, options: Mapping[str, object]) -> Tensor:
    learned = 1 + 20 * float(torch.sigmoid(torch.ones(())))
    return kd(batch, student, learned, alpha, options)


def dist(batch: Batch, student: Tensor, temperature: float, alpha: float, options: Mapping[str, object]) -> Tensor:
    p, q = (batch.teacher / temperature).softmax(1), (student / temperature).softmax(1)

    def correlation(first: Tensor, second: Tensor) -> Tensor:
        return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(first, second, strict=True)]).mean()

    soft = 2 * (1 - correlation(p, q)) + 2 * (1 - correlation(p.T, q.T))
    return ce(batch, student, 1, 0, options).mean() + temperature**2 * soft


def mlkd(batch: Batch, student: Tensor, temperature: float, alpha: float, options: Mapping[str, object]) -> Tensor:
    total = ce(batch, student, 1, 0, options).mean()
    for t in (2, 3, 4, 5, 6):
        p, q = (batch.teacher / t).softmax(1), (student / t).softmax(1)
        rows, classes = p.shape
        total = total + 9 * t * t * kl(p, student / t).mean()
        total = total + 9 * ((p @ p.T - q @ q.T) ** 2).sum() / rows + 9 * ((p.T @ p - q.T @ q) ** 2).sum() / classes
    return total


def rskd(batch: Batch, student: Tensor, temperature: float, alpha: float, options: Mapping[str, object]) -> Tensor:
    """With the counts of `method_cases.samples` as the target."""
    hard = ce(batch, student, 1, 0, options)
    target = torch.zeros_like(student)
    for row, (index, count) in enumerate(zip(*samples(batch), strict=True)):
        for place, times in zip(index.tolist(), count.tolist(), strict=True):
            target[row, place] += times
    target = target / target.sum(1, keepdim=True)
    return (1 - alpha) * hard - alpha * (target * student.log_softmax(1)).sum(1)
