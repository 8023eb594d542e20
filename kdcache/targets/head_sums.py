"""What a sparse loss needs of the student's (B, K) logits, in one pass forwards and one buffer backwards.

Written by hand because plain autograd keeps five (B, K) tensors alive for it, as many as a dense KL does; at
K = 150,000 memory traffic is the whole cost. First derivatives with respect to the logits only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _HeadSums(torch.autograd.Function):
    """Forwards and backwards of `head_sums`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, b: float) -> tuple[Tensor, Tensor, Tensor]:
        named = logits.gather(1, index) * b
        total = logits.sum(dim=1) * b
        # the smallest finite number, not -inf: an empty tail would give -inf + inf = NaN
        work = (logits * b).scatter_(1, index, torch.finfo(logits.dtype).min)
        largest = work.amax(dim=1)
        tail = work.sub_(largest[:, None]).exp_().sum(dim=1).log_().add_(largest)
        ctx.save_for_backward(logits, index, tail)
        ctx.b = b
        return named, tail, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, index, tail = ctx.saved_tensors
        of_named, of_tail, of_total = gradients
        gradient: Tensor = (logits * ctx.b).sub_(tail[:, None]).exp_().mul_((of_tail * ctx.b)[:, None])
        # named classes may have overflowed above: they are not in the tail, and are overwritten
        gradient.scatter_(1, index, 0.0).add_((of_total * ctx.b)[:, None])
        return gradient.scatter_add_(1, index, of_named * ctx.b), None, None


def head_sums(logits: Tensor, index: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled logits of the named classes, logsumexp over all others, and the sum over all.

    Args:
        logits: (B, K) float32 or float64.
        index: (B, h) int64 named classes; a class may be named twice.
        temperature: T > 0.

    Returns:
        x_i / T (B, h); log sum_{j not named} exp(x_j / T) (B,), the smallest finite number where all are named;
        sum_j x_j / T (B,).
    """
    return _HeadSums.apply(logits, index, 1.0 / temperature)  # type: ignore[no-any-return]
