"""What a sparse loss needs of the student's (B, K) logits, in one pass forwards and one buffer backwards.

Written by hand because plain autograd keeps five (B, K) tensors alive for it, as many as a dense KL does, and takes the
exponentials a second time on the way back; these are the whole cost of the loss. First derivatives with respect to the
logits only (`bucket_logits` is differentiable in the temperature as well, and pays for it).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# the log-probability or scaled logit of a place that holds no class: its exponential is 0 in every dtype and, unlike
# that of -inf, its product with 0 is 0
HOLE = -1e30


class _HeadSums(torch.autograd.Function):
    """Forwards and backwards of `head_sums`."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        index: Tensor,
        b: float,
        repeated: Tensor | None,
        empty: Tensor | None,
        with_rest: bool,
    ) -> tuple[Tensor, Tensor | None]:
        count = index.shape[1]
        powers, mass, largest = _tail_powers(logits, index, b)
        buckets = logits.new_empty(len(logits), count + 1)
        named = buckets[:, :count].copy_(logits.gather(1, index)).mul_(b)
        torch.add(mass.log(), largest, alpha=b, out=buckets[:, count])
        rest = None
        if with_rest:
            total = logits.sum(dim=1).mul_(b).sub_(named.sum(dim=1))
            rest = total if repeated is None else total.addcmul_(named[:, -1], repeated.to(total.dtype))
        if repeated is not None:
            named[:, -1].masked_fill_(repeated, HOLE)
        if empty is not None:
            buckets[:, count].masked_fill_(empty, HOLE)
        ctx.save_for_backward(logits, index, repeated, empty)
        ctx.b, ctx.with_rest, ctx.powers = b, with_rest, (powers, mass)
        return buckets, rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_buckets: Tensor, of_rest: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, index, repeated, empty = ctx.saved_tensors
        # the powers become the gradient in place; a second pass through a kept graph computes them again
        powers, mass = ctx.powers or _tail_powers(logits, index, ctx.b)[:2]
        ctx.powers = None
        scaled = of_buckets * ctx.b
        of_named, of_tail = scaled[:, :-1], scaled[:, -1]
        if ctx.with_rest and of_rest is not None:
            of_rest = of_rest * ctx.b
            of_named.sub_(of_rest[:, None])
        if repeated is not None:
            of_named[:, -1].masked_fill_(repeated, 0.0)
        if empty is not None:
            of_tail.masked_fill_(empty, 0.0)
        gradient: Tensor = powers.mul_(of_tail.div_(mass)[:, None])
        if ctx.with_rest and of_rest is not None:
            gradient.add_(of_rest[:, None])
        return gradient.scatter_add_(1, index, of_named), None, None, None, None, None


def _tail_powers(logits: Tensor, index: Tensor, b: float) -> tuple[Tensor, Tensor, Tensor]:
    """exp((x_j - m) b) of the classes not named and 0 elsewhere (B, K), their sum (B,), and m, the largest of x_j (B,).

    Where every class is named all powers are 1, and the caller's `empty` says that they mean nothing.
    """
    work = logits.scatter(1, index, HOLE)
    largest = work.amax(dim=1)
    powers = work.sub_(largest[:, None]).mul_(b).exp_()
    return powers, powers.sum(dim=1), largest


def head_sums(
    logits: Tensor,
    index: Tensor,
    temperature: float,
    *,
    repeated: Tensor | None = None,
    empty: Tensor | None = None,
    with_rest: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Scaled logits of the named classes and of one bucket for all others.

    Args:
        logits: (B, K) float32 or float64.
        index: (B, h) int64 named classes.
        temperature: T > 0.
        repeated: (B,) bool, rows whose last named class stands before it as well; None: none.
        empty: (B,) bool, rows without other classes; None: none.
        with_rest: whether the second result is wanted; it costs two more passes over the logits.

    Returns:
        (B, h + 1): x_i / T, then log sum_{j not named} exp(x_j / T); HOLE for a repeated class and an empty tail.
        (B,): sum_{j not named} x_j / T, or None.
    """
    sums: tuple[Tensor, Tensor | None] = _HeadSums.apply(logits, index, 1.0 / temperature, repeated, empty, with_rest)
    return sums


def bucket_logits(
    logits: Tensor,
    index: Tensor,
    temperature: Tensor,
    *,
    repeated: Tensor | None = None,
    empty: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`head_sums` with the rest, differentiable in the temperature (a tensor that broadcasts to (B,)) as well."""
    scaled = logits / (temperature[:, None] if temperature.ndim == 1 else temperature)
    named = scaled.gather(1, index)
    rest = scaled.scatter(1, index, 0.0).sum(dim=1)
    tail = scaled.scatter(1, index, HOLE).logsumexp(dim=1)
    if empty is not None:
        tail = tail.masked_fill(empty, HOLE)
    last = named[:, -1] if repeated is None else named[:, -1].masked_fill(repeated, HOLE)
    return torch.cat([named[:, :-1], last[:, None], tail[:, None]], dim=1), rest
