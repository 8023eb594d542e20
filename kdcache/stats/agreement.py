"""How much two views of a row agree, and how many views make a stable mean opinion.

Two views name different classes, so each is completed first: the classes it names keep their probability, the others
share its tail's mass evenly. Exact at k = K. Everything is sums over named classes: nothing here is (B, K).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcache.stats.figures import ViewFigures
from kdcache.stats.sums import Sums
from kdcache.targets.soft import SoftTargets
from kdcache.targets.split import split_teacher

TOLERATED = 0.1  # relative L2 error of the mean opinion at the suggested V
MOST_VIEWS = 65_536


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """One view's opinion of B rows at T=1, completed by an even tail.

    Attributes:
        first: (B,) int64 most probable class.
        index: (B, h) int64 named classes in rising order; unnamed places hold K.
        log_prob: (B, h) float64 of the same; 0 in unnamed places.
        named: (B, h) float64, 1 or 0.
        level: (B,) float64 log-probability of each class that is not named.
        others: (B,) float64, how many those are.
    """

    first: Tensor
    index: Tensor
    log_prob: Tensor
    named: Tensor
    level: Tensor
    others: Tensor

    @classmethod
    def of(cls, targets: SoftTargets) -> Opinion:
        """From a store's rows."""
        split = split_teacher(targets, 1.0)
        index, order = split.index.masked_fill(~split.named, targets.num_classes).sort(dim=1)
        others = split.count.double()
        level = split.log_tail.double() - others.clamp(min=1).log()
        return cls(
            first=targets.index[:, 0],
            index=index,
            log_prob=split.log_prob.double().gather(1, order),
            named=split.named.double().gather(1, order),
            level=torch.where(others > 0, level, torch.zeros_like(level)),
            others=others,
        )

    def at(self, index: Tensor) -> Tensor:
        """(B, m) log-probability of given classes (sorted or not)."""
        place = torch.searchsorted(self.index, index).clamp(max=self.index.shape[1] - 1)
        found = self.index.gather(1, place) == index
        return torch.where(found, self.log_prob.gather(1, place), self.level[:, None])

    def total_log_prob(self) -> Tensor:
        """(B,) sum of log-probability over all K classes."""
        return self.log_prob.sum(dim=1) + self.others * self.level


def divergence(p: Opinion, q: Opinion) -> Tensor:
    """KL(p || q) over all K classes at T=1; (B,) nats."""
    there = q.at(p.index) * p.named
    head = (p.log_prob.exp() * p.named * (p.log_prob - there)).sum(dim=1)
    tail = p.level.exp() * (p.others * p.level - (q.total_log_prob() - there.sum(dim=1)))
    return (head + torch.where(p.others > 0, tail, torch.zeros_like(tail))).clamp(min=0)


def inner_product(p: Opinion, q: Opinion) -> Tensor:
    """Sum of p_j q_j over all K classes; (B,)."""
    there = q.at(p.index).exp() * p.named
    named = (p.log_prob.exp() * there).sum(dim=1)
    outside = p.level.exp() * (1 - there.sum(dim=1)).clamp(min=0)
    return named + torch.where(p.others > 0, outside, torch.zeros_like(outside))


class AgreementSums:
    """Adds up pairs of views.

    Args:
        complete: the store keeps all K classes.
    """

    def __init__(self, *, complete: bool) -> None:
        self._complete = complete
        self.sums: Sums = {"pairs": torch.zeros(5, dtype=torch.float64)}  # pairs, same class, KL, squares, products

    def add(self, p: Opinion, q: Opinion) -> None:
        """Count two views of the same rows."""
        both_kl = (divergence(p, q) + divergence(q, p)) / 2
        squares = (inner_product(p, p) + inner_product(q, q)) / 2
        same = (p.first == q.first).double()
        counted = (torch.ones_like(same), same, both_kl, squares, inner_product(p, q))
        self.sums["pairs"] += torch.stack([values.sum() for values in counted])

    def result(self) -> ViewFigures | None:
        """Figures over all pairs; None when there were none.

        With independent views E<p_v, p_w> is the squared length of a row's mean opinion, and E|p_v|^2 minus it the
        spread of one view around it; the mean over V views keeps 1/V of that spread.
        """
        counted, same, both_kl, square, product = self.sums["pairs"].tolist()
        if not counted:
            return None
        pairs = int(counted)
        spread = max(square - product, 0.0) / max(product, 1e-300)
        suggested = min(max(1, math.ceil(spread / TOLERATED**2 - 1e-9)), MOST_VIEWS)
        views = tuple(2**i for i in range(max(4, math.ceil(math.log2(suggested)) + 1)))
        return ViewFigures(
            pairs=pairs,
            top1_agreement=same / pairs,
            symmetric_kl=both_kl / pairs,
            spread=spread,
            views=views,
            error=tuple(math.sqrt(spread / count) for count in views),
            suggested=suggested,
            modelled=not self._complete,
        )
