"""What a batch says about a distillation run: gradient rescaling per row, and agreement with the teacher. No loss.

`gradient_rescaling` is kd's closed form; `measured_rescaling` reads the factor off the gradient of any method's loss.

Source: Tang et al. 2020, arXiv:2002.03532 (the instance-specific factor); the exact form is algebra, docs/methods.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.errors import IncompatibleError
from kdcache.targets.soft import SoftTargets
from kdcache.targets.split import log_label_probs, student_label_log_probs

PERCENTILES = (5, 25, 50, 75, 95)
# 1 - q_y below this leaves a float32 gradient on the label under 4 digits; the ratio to it would be rounding
SMALLEST_MEASURED = 1e-4


@torch.no_grad()
def gradient_rescaling(student_logits: Tensor, targets: SoftTargets, *, temperature: float, alpha: float) -> Tensor:
    """omega_y = (1-alpha) + alpha T (p_y^T - q_y^T) / (1 - q_y): by how much kd scales cross-entropy's gradient on the
    label's logit. The wrong-class gradients sum to the same ratio, and kd-pt has the same factor.

    Args:
        student_logits: (B, K).
        targets: B rows.
        temperature: T.
        alpha: weight of the soft part.

    Returns:
        (B,) float, no unit.

    Raises:
        IncompatibleError: the rows mix two examples: the factor is about the one label that is true.
    """
    if targets.mix is not None:
        raise IncompatibleError(
            "gradient rescaling is the factor on the true label's gradient; these rows mix two examples and have two",
            hint="look at it on a store without mixup and cutmix",
        )
    logits = student_logits if student_logits.dtype == torch.float64 else student_logits.float()
    log_p, log_other_p = log_label_probs(targets, temperature)
    log_q, log_other_q = student_label_log_probs(logits, targets.label, temperature)
    _, log_wrong = student_label_log_probs(logits, targets.label, 1.0)
    # where both are sure of the label, p - q loses its digits; the other classes' masses keep them
    sure = (log_p > -0.5) & (log_q > -0.5)
    difference = torch.where(sure, log_other_q.exp() - log_other_p.exp(), log_p.exp() - log_q.exp())
    wrong = log_wrong.exp().clamp(min=torch.finfo(logits.dtype).tiny)
    return (1 - alpha) + alpha * temperature * difference / wrong


@torch.no_grad()
def measured_rescaling(student_logits: Tensor, gradient: Tensor, labels: Tensor) -> Tensor:
    """By how much a loss scales cross-entropy's gradient on the label's logit, whatever the loss: omega_y as measured.

    For kd (tail full, ghost or uniform) and kd-pt it is `gradient_rescaling` up to rounding, for ce it is 1.

    Args:
        student_logits: (B, K).
        gradient: (B, K) of the rows' summed loss with respect to these logits.
        labels: (B,) int64.

    Returns:
        (B,) float, no unit; NaN where q_y > 0.9999, where cross-entropy's own gradient is mostly rounding.
    """
    wrong = student_label_log_probs(student_logits, labels, 1.0)[1].exp()
    omega = -gradient.gather(1, labels[:, None])[:, 0] / wrong
    return omega.masked_fill(wrong < SMALLEST_MEASURED, torch.nan)


@torch.no_grad()
def diagnostics(
    student_logits: Tensor, targets: SoftTargets, *, temperature: float, alpha: float, mask: Tensor | None = None
) -> dict[str, float]:
    """Numbers to log: gradient rescaling over the rows and agreement with the teacher.

    Args:
        student_logits: (B, K).
        targets: B rows.
        temperature, alpha: those of the run.
        mask: (B,) bool, rows that count; by default all.

    Returns:
        `omega_mean`, `omega_p5` .. `omega_p95`, `omega_confidence_correlation` (Pearson, with p_y^T; 0 where either is
        constant), `teacher_agreement` (same most probable class, 0 to 1), `teacher_confidence` (mean p_y^T), `rows`.
        Keys are the same for every batch. Copies a few numbers to the host: call it once per epoch or every many steps.
    """
    omega = gradient_rescaling(student_logits, targets, temperature=temperature, alpha=alpha).double()
    confidence = log_label_probs(targets, temperature)[0].double().exp()
    same = (student_logits.argmax(dim=1) == targets.index[:, 0]).double()
    if mask is not None:
        omega, confidence, same = omega[mask], confidence[mask], same[mask]
    shown = summary(omega, confidence)
    agreement = float(same.mean()) if len(same) else float("nan")
    return {**shown, "teacher_agreement": agreement, "rows": float(len(omega))}


@torch.no_grad()
def summary(omega: Tensor, confidence: Tensor) -> dict[str, float]:
    """Gradient rescaling over rows as the numbers that are logged.

    Args:
        omega: (R,) float, rescaling per row.
        confidence: (R,) float, p_y^T of the same rows.

    Returns:
        `omega_mean`, `omega_p5` .. `omega_p95`, `omega_confidence_correlation` (Pearson; 0 where either is constant)
        and `teacher_confidence` (mean p_y^T); all NaN for no rows.
    """
    omega, confidence = omega.double(), confidence.double()
    if len(omega) == 0:
        omega = confidence = torch.full((1,), torch.nan, dtype=torch.float64)
    levels = torch.tensor(PERCENTILES, dtype=omega.dtype, device=omega.device) / 100
    quantiles = torch.quantile(omega[: 2**23], levels)  # torch.quantile takes at most 16 M values
    numbers = torch.cat([torch.stack([omega.mean(), _correlation(omega, confidence), confidence.mean()]), quantiles])
    names = ["omega_mean", "omega_confidence_correlation", "teacher_confidence"]
    names += [f"omega_p{percentile}" for percentile in PERCENTILES]
    return dict(zip(names, numbers.tolist(), strict=True))


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    first, second = first - first.mean(), second - second.mean()
    scale = first.norm() * second.norm()
    return torch.where(scale > 0, (first * second).sum() / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0)
