"""Rows that show two examples: the partner's label beside the row's own, and the same opinion seen from the partner.

The teacher saw the mix, so its opinion needs no change; only what speaks of "the" label does. The hard part is weighted
by lambda (`LossInputs.hard`); a loss built on the label is evaluated once for each label (`Method`). No pixels here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from kdcache.errors import IncompatibleError
from kdcache.targets.soft import LabelMix, SoftTargets
from kdcache.targets.tail import Tail, tail_with_label


@dataclass(frozen=True, kw_only=True)
class OnMixedViews:
    """What a method does with rows that mix two examples.

    Attributes:
        summary: how it treats the two labels, as `kdcache methods` shows it.
        each_label: the loss is evaluated once for each label and weighted by lambda; else only its hard part is.
        refused: why the method is not defined on mixed views; empty where it is.
        refused_options: (option, value, reason) of options that are not defined there, though the method is.
    """

    summary: str
    each_label: bool = False
    refused: str = ""
    refused_options: tuple[tuple[str, str, str], ...] = ()

    def __str__(self) -> str:
        return "; ".join([self.summary, *(f"{name}={value} is refused" for name, value, _ in self.refused_options)])

    def check(self, method: str, options: Mapping[str, object]) -> None:
        """Refuse mixed rows where the method is not defined on them.

        Args:
            method: its name, for the message.
            options: every option of the method with its value.

        Raises:
            IncompatibleError: the method, or an option's value, has no meaning for two labels; the message says why.
        """
        reason = self.refused
        for name, value, why in self.refused_options:
            if not reason and options.get(name) == value:
                reason = f"with {name}={value}, {why}"
        if reason:
            raise IncompatibleError(
                f"method {method} is not defined on mixed views (mixup, cutmix): {reason}",
                hint="choose a method that is, for example kd (kdcache methods NAME says), or a store without mixing",
            )


HARD_PART = OnMixedViews(summary="the hard part is weighted by lambda, the teacher's opinion is of the mix")
EACH_LABEL = OnMixedViews(summary="the loss of each of the two labels, weighted by lambda", each_label=True)


def refused(reason: str) -> OnMixedViews:
    """A method that has no meaning for two labels, and why."""
    return OnMixedViews(summary=f"refused: {reason}", refused=reason)


def mixed_cross_entropy(logits: Tensor, labels: Tensor, mix: LabelMix | None, *, smoothing: float = 0.0) -> Tensor:
    """(B,) nats: cross-entropy with the label, or with both labels of mixed rows weighted by lambda.

    Args:
        logits: (B, K).
        labels: (B,) int64.
        mix: the second labels, or None.
        smoothing: eps of label smoothing.
    """
    own = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    if mix is None:
        return own
    other = functional.cross_entropy(logits, mix.partner_label, reduction="none", label_smoothing=smoothing)
    return torch.lerp(other, own, mix.weight.to(own.dtype))


def seen_from_partner(targets: SoftTargets) -> SoftTargets:
    """The same B opinions with the partner's label in the label's place; not mixed.

    The old label joins the tail where it is outside the top k (exact). The partner's label leaves the tail where it was
    in it: its share of the tail is taken out of rounded numbers, so the tail's mass is off by as much as rounding moved
    it (a few percent of the tail's mass), and Jensen's bound keeps what is left positive.

    Raises:
        IncompatibleError: the rows are not mixed, or the store does not keep `partner_label_log_prob`.
    """
    mix = targets.mix
    if mix is None or mix.partner_log_prob is None:
        missing = "the rows are not mixed" if mix is None else "these targets do not carry it"
        raise IncompatibleError(
            f"the teacher's log-probability of the partner's label is needed (partner_label_log_prob), but {missing}",
            hint="dump the mixed views again with kdcache dump-teacher",
        )
    same = mix.partner_label == targets.label
    in_top = (targets.index == mix.partner_label[:, None]).any(dim=1)
    swapped = _without(tail_with_label(targets), mix.partner_log_prob, ~in_top & ~same).numbers()
    return replace(
        targets,
        label=mix.partner_label,
        label_log_prob=torch.where(same, targets.label_log_prob, mix.partner_log_prob),
        tail=torch.where(same[:, None], targets.tail, swapped),
        mix=None,
    )


def _without(tail: Tail, log_prob: Tensor, leaving: Tensor) -> Tail:
    """The tail after one of its classes leaves in the rows of `leaving` (B,); log_prob (B,) is that class's."""
    count = tail.count - 1
    divisor = count.clamp(min=1)
    mean = (tail.count * tail.mean - log_prob) / divisor
    # the class that leaves is further from the new mean by n / (n - 1), which is what the old variance had too much
    excess = (log_prob - tail.mean).square() * tail.count / divisor
    variance = ((tail.count * tail.variance - excess) / divisor).clamp(min=0)
    # a tail below its cap: no class outside the top k is more probable than the k-th, whatever rounding did to the mean
    mean = torch.minimum(mean, tail.ceiling)
    empty = count <= 0
    log_count = divisor.log()
    parts = [_minus(tail.log_mass, log_prob, log_count + mean), mean, variance]
    if tail.half_log_mass is not None:
        parts.append(_minus(tail.half_log_mass, log_prob / 2, log_count + mean / 2))
    empties = (-torch.inf, 0.0, 0.0, -torch.inf)
    before = tail.numbers()
    columns = [
        torch.where(leaving, part.masked_fill(empty, value), before[:, i])
        for i, (part, value) in enumerate(zip(parts, empties, strict=False))
    ]
    return replace(
        tail,
        count=torch.where(leaving, count, tail.count),
        log_mass=columns[0],
        mean=columns[1],
        variance=columns[2],
        half_log_mass=columns[3] if len(columns) == 4 else None,
    )


def _minus(log_sum: Tensor, log_part: Tensor, least: Tensor) -> Tensor:
    """log(exp(log_sum) - exp(log_part)), at least `least` (Jensen) where rounding left less, or nothing at all."""
    share = (log_part - log_sum).clamp(max=0).nan_to_num(nan=0.0)
    rest = torch.log1p(-share.exp().clamp(max=1 - 1e-6)) + log_sum
    return torch.maximum(rest, least)
