"""The mean opinion of several teachers about the same rows: probabilities averaged at T=1.

Exact where every class is stored. Below that a class that one teacher names and another does not has only bounds in
the second, and an equal share of its tail is taken: the result is approximate, and `bound` says by how much at most.
No store here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdcache.errors import ConfigError
from kdcache.targets.encode import encode_topk
from kdcache.targets.soft import SoftTargets
from kdcache.targets.tail import Tail, add_to_tail, tail_of

QUADRATURE_POINTS = 16
SMALLEST = -65_504.0  # log p of a class with no probability at all; float16's lowest number


@dataclass(frozen=True, kw_only=True)
class MeanOpinion:
    """Averaged soft targets of B rows.

    Attributes:
        targets: the k most probable classes of the mean and its tail.
        bound: (B,) float32, at most this far (total variation over head classes and tail) from the true mean; 0 where
            every class was stored.
    """

    targets: SoftTargets
    bound: Tensor


def mean_opinion(members: Sequence[SoftTargets], *, topk: int) -> MeanOpinion:
    """Average M teachers' probabilities at T=1.

    Args:
        members: M opinions about the same B rows, with the same labels, K and number of tail numbers.
        topk: classes to keep, at most the smallest k of the members.

    Raises:
        ConfigError: topk out of range, or members that do not belong together.
    """
    first = members[0]
    most = min(member.topk for member in members)
    if not 1 <= topk <= most:
        raise ConfigError(f"top-k: expected 1 to {most} (the smallest k of the stores), found {topk}")
    for member in members:
        if member.num_classes != first.num_classes or not torch.equal(member.label, first.label):
            raise ConfigError("mean opinion: the members differ in labels or classes; expected the same rows")
    if all(member.topk == member.num_classes for member in members):
        return _exact(members, topk)
    return _approximate(members, topk)


def _exact(members: Sequence[SoftTargets], topk: int) -> MeanOpinion:
    first = members[0]
    shape = (len(first), first.num_classes)
    dense = (torch.empty(shape, device=first.device).scatter_(1, each.index, each.log_prob) for each in members)
    # storage rounds a row's sum by up to 1e-3; the last softmax, in `encode_topk`, divides by M
    summed = _log_sum(each.log_softmax(dim=1) for each in dense)
    encoded = encode_topk(summed, first.label, topk=topk, tail_numbers=first.tail.shape[1])
    return MeanOpinion(targets=encoded.targets(), bound=torch.zeros(len(first), device=first.device))


def _log_sum(parts: Iterable[Tensor]) -> Tensor:
    """Log of the sum of exponentials, one part in memory at a time: a sure teacher's e^-110 is 0 in float32."""
    return functools.reduce(torch.logaddexp, parts)


def _approximate(members: Sequence[SoftTargets], topk: int) -> MeanOpinion:
    first = members[0]
    candidates, named = _candidates(members)
    count = named.sum(dim=1)
    bound = torch.zeros(len(first), device=first.device)
    unnamed, opinions = [], []
    for member in members:
        tail, known, value = tail_of(member), *_lookup(member, candidates)
        missing = named & ~known
        share, most = _share_of_tail(tail)
        absent = missing.sum(dim=1)
        opinions.append(torch.where(missing, share[:, None], value))
        bound += torch.minimum(tail.log_mass.exp(), absent * most.exp()) / len(members)
        used = (absent * (share - tail.log_mass).nan_to_num(nan=0.0).exp()).clamp(max=1.0)
        unnamed.append(tail.log_mass + torch.log1p(-used))
    log_prob = (_log_sum(opinions) - math.log(len(members))).clamp(min=SMALLEST)
    rest = _common_tail(members, unnamed, first.num_classes - count)
    head, places = log_prob.masked_fill(~named, -torch.inf).topk(topk, dim=1, sorted=True)
    index = candidates.gather(1, places)
    is_label = candidates == first.label[:, None]
    label_log_prob = log_prob.masked_fill(~(is_label & named), -torch.inf).amax(dim=1)
    dropped = named & ~is_label
    dropped.scatter_(1, places, False)
    tail = add_to_tail(rest, log_prob, dropped, ceiling=head[:, -1])
    targets = SoftTargets(
        index=index,
        log_prob=head,
        tail=tail.at_rest().numbers(),
        label=first.label,
        label_log_prob=label_log_prob,
        num_classes=first.num_classes,
    )
    return MeanOpinion(targets=targets, bound=bound)


def _candidates(members: Sequence[SoftTargets]) -> tuple[Tensor, Tensor]:
    """(B, C) classes that any member names, ascending, and which of them are not repeats."""
    every = torch.cat([*(member.index for member in members), members[0].label[:, None]], dim=1).sort(dim=1).values
    named = torch.ones_like(every, dtype=torch.bool)
    named[:, 1:] = every[:, 1:] != every[:, :-1]
    return every, named


def _lookup(member: SoftTargets, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a member names each candidate, (B, C) bool, and its log p there."""
    classes = torch.cat([member.index, member.label[:, None]], dim=1)
    values = torch.cat([member.log_prob, member.label_log_prob[:, None]], dim=1)
    ordered, by = classes.sort(dim=1)
    place = torch.searchsorted(ordered, candidates).clamp(max=ordered.shape[1] - 1)
    known = ordered.gather(1, place) == candidates
    return known, values.gather(1, by).gather(1, place)


def _share_of_tail(tail: Tail) -> tuple[Tensor, Tensor]:
    """(B,) log of the equal share of one tail class, and of the most it can have: all of the mass, or the ceiling."""
    most = torch.minimum(tail.log_mass, tail.ceiling)
    return torch.minimum(tail.log_mass - tail.count.clamp(min=1).log(), most), most


def _common_tail(members: Sequence[SoftTargets], log_mass: Sequence[Tensor], count: Tensor) -> Tail:
    """The classes no member names, as if the teachers ranked them alike and their log p were normal up to the ceiling.

    The numbers are those of the log of the mean at the nodes of a Gauss-Hermite rule, shifted so that the mass is the
    one that is left. A sure teacher's tail is so wide that without the ceiling (no unnamed class is more probable than
    the k-th) one node would hold all of the mass, more than a class can; A(1/2) is kept to what n classes allow.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(QUADRATURE_POINTS)
    z = torch.tensor(nodes, dtype=torch.float32, device=count.device)
    log_w = torch.tensor(np.log(weights / weights.sum()), dtype=torch.float32, device=count.device)
    tails = [tail_of(member) for member in members]
    curves = [(tail.mean[:, None] + tail.variance.sqrt()[:, None] * z).minimum(tail.ceiling[:, None]) for tail in tails]
    values = torch.stack(curves).logsumexp(dim=0) - math.log(len(members))
    number = count.to(values.dtype)
    empty = count == 0
    log_n = number.clamp(min=1).log()
    left = (_log_sum(log_mass) - math.log(len(members))).clamp(min=SMALLEST)
    shift = left - log_n - (log_w + values).logsumexp(dim=1)
    values = values + shift[:, None]
    weight = log_w.exp()
    mean = (weight * values).sum(dim=1)
    variance = (weight * (values - mean[:, None]).square()).sum(dim=1)
    half = (log_n + (log_w + values / 2).logsumexp(dim=1)).clamp(min=left / 2, max=(log_n + left) / 2)
    return Tail(
        count=number,
        log_mass=left.masked_fill(empty, -torch.inf),
        mean=mean.masked_fill(empty, 0.0),
        variance=variance.masked_fill(empty, 0.0),
        half_log_mass=half.masked_fill(empty, -torch.inf) if members[0].tail.shape[1] == 4 else None,
        ceiling=torch.stack([tail.ceiling for tail in tails]).amax(dim=0),
    )
