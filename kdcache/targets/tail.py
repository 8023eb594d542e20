"""The classes a store does not name: their mass at any temperature, and moving named classes among them.

With A(b) = log sum_tail exp(b log p) and b = 1/T, a row knows A(0) = log n, A'(0) = mean, A''(0) = variance and
A(1) = log mass (and A(1/2), the log mass at T=2, where a fourth number is kept). The polynomial through them gives
A(b); convexity of A bounds it. No student and no loss here. Algebra and measured errors: docs/methods.md#tail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdcache.errors import ConfigError
from kdcache.targets.soft import LARGEST_STORED, SoftTargets

Weight = float | Tensor  # what a known number counts for at b: a plain number where T is one
Bounds = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Tail:
    """Statistics of log p (T=1, nats) over the n classes of each row that are not named; every field is (B,) float.

    Attributes:
        count: n.
        log_mass: log of their summed probability; -inf when n = 0.
        mean: mean of log p; 0 when n = 0.
        variance: variance of log p (divided by n); 0 when n = 0.
        half_log_mass: A(1/2) = log of the sum of p^(1/2), -inf when n = 0; None where the store keeps three numbers.
        ceiling: an upper bound of log p in the tail: the k-th top-k log p.
    """

    count: Tensor
    log_mass: Tensor
    mean: Tensor
    variance: Tensor
    half_log_mass: Tensor | None
    ceiling: Tensor

    def at_rest(self) -> Tail:
        """The same with a variance that float16 holds, as `encode_topk` keeps it."""
        return replace(self, variance=self.variance.clamp(max=LARGEST_STORED))

    def numbers(self) -> Tensor:
        """(B, 3) or (B, 4): the layout of `SoftTargets.tail`."""
        columns = [self.log_mass, self.mean, self.variance]
        return torch.stack(columns if self.half_log_mass is None else [*columns, self.half_log_mass], dim=1)


def tail_of(targets: SoftTargets) -> Tail:
    """The tail as stored: the classes outside top k and label."""
    tail = targets.tail
    return Tail(
        count=targets.tail_count.to(tail.dtype),
        log_mass=tail[:, 0],
        mean=tail[:, 1],
        variance=tail[:, 2],
        half_log_mass=tail[:, 3] if tail.shape[1] == 4 else None,
        ceiling=targets.log_prob[:, -1],
    )


def tail_with_label(targets: SoftTargets) -> Tail:
    """The tail of the head S = top k alone: the label joins it where it is outside the top k (exact)."""
    outside = ~targets.label_in_topk
    return add_to_tail(tail_of(targets), targets.label_log_prob[:, None], outside[:, None])


def label_to_tail(targets: SoftTargets) -> Tensor:
    """`tail_with_label` as (B, 3) or (B, 4) numbers over the K - k classes outside the top k."""
    return tail_with_label(targets).numbers()


def add_to_tail(tail: Tail, log_prob: Tensor, chosen: Tensor, *, ceiling: Tensor | None = None) -> Tail:
    """The tail after some named classes lose their name; exact, and well conditioned on rounded numbers.

    Args:
        tail: the tail before.
        log_prob: (B, m) log p at T=1 of the classes, in nats.
        chosen: (B, m) bool, which of them join.
        ceiling: (B,) new upper bound of log p; by default the old one.
    """
    joining = chosen.to(tail.count.dtype).sum(dim=1)
    count = tail.count + joining
    divisor = count.clamp(min=1)
    values = log_prob.masked_fill(~chosen, 0.0)
    mean = (tail.count * tail.mean + values.sum(dim=1)) / divisor
    # around the new mean (not sum of squares minus square): the moments stay positive in float32
    spread = (values - mean[:, None]).masked_fill(~chosen, 0.0).square().sum(dim=1)
    variance = (tail.count * (tail.variance + (tail.mean - mean).square()) + spread) / divisor
    joined = log_prob.masked_fill(~chosen, -torch.inf)
    log_mass = torch.logaddexp(tail.log_mass, _logsumexp(joined))
    empty = count == 0
    half = tail.half_log_mass
    if half is not None:
        half = torch.logaddexp(half, _logsumexp(joined / 2))
    return Tail(
        count=count,
        log_mass=log_mass,
        mean=mean.masked_fill(empty, 0.0),
        variance=variance.masked_fill(empty, 0.0),
        half_log_mass=half,
        ceiling=tail.ceiling if ceiling is None else ceiling,
    )


def _logsumexp(values: Tensor) -> Tensor:
    """(B,) of (B, m); the usual m = 1, one label, is a single operation instead of nine."""
    return values[:, 0] if values.shape[1] == 1 else values.logsumexp(dim=1)


def narrow(targets: SoftTargets, topk: int) -> SoftTargets:
    """The targets a store of k' < k would have held, up to rounding: the other top classes join the tail.

    The label keeps its name wherever it stands.

    Raises:
        ConfigError: k' is not between 1 and the stored k.
    """
    if not 1 <= topk <= targets.topk:
        raise ConfigError(
            f"top-k: expected 1 to {targets.topk} (what the store keeps), found {topk}",
            hint=f"run dump-teacher with --topk {topk} to keep more classes" if topk > targets.topk else "",
        )
    if topk == targets.topk:
        return targets
    dropped = targets.log_prob[:, topk:]
    is_label = targets.index[:, topk:] == targets.label[:, None]
    tail = add_to_tail(tail_of(targets), dropped, ~is_label, ceiling=targets.log_prob[:, topk - 1])
    numbers = tail.at_rest().numbers()
    return replace(targets, index=targets.index[:, :topk], log_prob=targets.log_prob[:, :topk], tail=numbers)


def log_power_sum(tail: Tail, temperature: float | Tensor) -> Tensor:
    """A(1/T) = log sum over the tail of p^(1/T), not normalised; (B,) nats, -inf for an empty tail.

    Exact at T=1 (and at T=2 with four numbers) and in the limit of large T, a polynomial between them; below T=1 only
    the bounds are sure.
    Differentiable in `temperature` (a float, or a tensor that broadcasts to (B,)).
    """
    b = 1.0 / temperature
    empty = tail.count == 0
    known = [tail.count.clamp(min=1).log(), tail.log_mass.masked_fill(empty, 0.0), tail.mean, tail.variance]
    if tail.half_log_mass is not None:
        known.append(tail.half_log_mass.masked_fill(empty, 0.0))
    value = _weighted(_polynomial(b, half=len(known) == 5), known)
    lower, upper = _convexity_bounds(tail.ceiling, known, b)
    return torch.minimum(torch.maximum(value, lower), upper).masked_fill(empty, -torch.inf)


def _weighted(weights: Sequence[Weight], columns: Sequence[Tensor]) -> Tensor:
    """The sum of weight times column; a plain weight of 0 costs nothing, and other plain ones a single operation."""
    total: Tensor | None = None
    for weight, column in zip(weights, columns, strict=True):
        if isinstance(weight, Tensor):
            total = weight * column if total is None else total + weight * column
        elif weight != 0:
            total = weight * column if total is None else torch.add(total, column, alpha=weight)
    return torch.zeros_like(columns[0]) if total is None else total


def _polynomial(b: Weight, *, half: bool) -> list[Weight]:
    """Weights of log n, A(1), mean, variance (and A(1/2)) in the polynomial through all of them, at b.

    The cubic is log n + b mean + b^2 variance / 2 + b^3 (what A(1) leaves); A(1/2) adds the quartic's term, which is 0
    at b = 1.
    """
    square, cube = b * b, b * b * b
    weights = [1 - cube, cube, b - cube, (square - cube) / 2]
    if not half:
        return weights
    bend = cube * (
        b - 1
    )  # times 2 (A(1) - log n - mean - variance / 2) - 16 (A(1/2) - log n - mean / 2 - variance / 8)
    extra = [14 * bend, 2 * bend, 6 * bend, bend]
    return [*(first + more for first, more in zip(weights, extra, strict=True)), -16 * bend]


def _convexity_bounds(ceiling: Tensor, known: Sequence[Tensor], b: Weight) -> tuple[Tensor, Tensor]:
    """Bounds of A(b): A is convex with known values at 0, 1 (and 1/2) and a known slope at 0.

    A lies below the chord of two known points between them and above its continuation outside them; past the last
    point its slope never exceeds the ceiling. The chord is tighter than log n + b * ceiling and makes the known
    temperatures exact whatever was rounded.

    Args:
        ceiling: (B,) upper bound of log p in the tail.
        known: log n, A(1), mean, variance (and A(1/2)), each (B,).
        b: 1 / T.
    """
    log_n, log_mass, mean = known[:3]
    tangent = _weighted((1.0, b), (log_n, mean))
    if len(known) == 4:
        return _where(
            b <= 1,
            lambda: (tangent, _weighted((1 - b, b), (log_n, log_mass))),
            lambda: (_weighted((1 - b, b), (log_n, log_mass)), _weighted((1.0, b - 1), (log_mass, ceiling))),
        )
    half = known[4]

    def left() -> Tensor:
        return _weighted((1 - 2 * b, 2 * b), (log_n, half))

    def right() -> Tensor:
        return _weighted((2 * b - 1, 2 - 2 * b), (log_mass, half))

    lower, upper = _where(
        b <= 0.5,
        lambda: (right(), left()),
        lambda: _where(
            b <= 1,
            lambda: (left(), right()),
            lambda: (right(), _weighted((1.0, b - 1), (log_mass, ceiling))),
        ),
    )
    return torch.maximum(lower, tangent), upper


def _where(condition: bool | Tensor, yes: Callable[[], Bounds], no: Callable[[], Bounds]) -> Bounds:
    """`torch.where` on a pair; for a temperature that is a plain number only one side is computed."""
    if not isinstance(condition, Tensor):
        return yes() if condition else no()
    (low, high), (other_low, other_high) = yes(), no()
    return torch.where(condition, low, other_low), torch.where(condition, high, other_high)


def log_partition(targets: SoftTargets, temperature: float | Tensor) -> Tensor:
    """Log sum over all K classes of p^(1/T); (B,) nats. At T=1 it is 0 up to what storage rounded."""
    b = 1.0 / temperature
    if isinstance(b, Tensor) and b.ndim == 1:
        b = b[:, None]
    named = torch.cat([targets.log_prob, targets.label_log_prob[:, None]], dim=1) * b
    twice = torch.zeros_like(named, dtype=torch.bool)
    twice[:, -1] = targets.label_in_topk
    # masked after the product: the gradient of b * -inf is NaN
    head = named.masked_fill(twice, -torch.inf).logsumexp(dim=1)
    return torch.logaddexp(head, log_power_sum(tail_of(targets), temperature))


def log_tail_mass(targets: SoftTargets, temperature: float | Tensor) -> Tensor:
    """Log pi^T: the teacher's probability at T of the classes outside top k and label; (B,) nats, -inf if none."""
    return log_power_sum(tail_of(targets), temperature) - log_partition(targets, temperature)
