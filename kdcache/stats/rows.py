"""Which rows contradict their label most, and which classes are taken for one another: candidates for label noise."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.stats.figures import ConfusedPair, Contradiction
from kdcache.targets.soft import SoftTargets

PAIRS = 20


class BlockRows:
    """Mean over views of what the rows of one block say about their label.

    Args:
        rows: in the block.
    """

    def __init__(self, rows: int) -> None:
        self._views = 0
        self.margin = torch.zeros(rows, dtype=torch.float64)
        self.label = torch.zeros(rows, dtype=torch.float64)
        self.first = torch.zeros(rows, dtype=torch.float64)
        self._surest = torch.full((rows,), -torch.inf)
        self.predicted = torch.full((rows,), -1, dtype=torch.int64)

    def add(self, start: int, targets: SoftTargets) -> None:
        """Count the rows from `start` on of one view."""
        here = slice(start, start + len(targets))
        first = targets.log_prob[:, 0]
        self.margin[here] += (first - targets.label_log_prob).double()
        self.label[here] += targets.label_log_prob.double().exp()
        self.first[here] += first.double().exp()
        # the class to show: of the views that contradict the label the one that is surest of it
        surer = (targets.index[:, 0] != targets.label) & (first > self._surest[here])
        self.predicted[here] = torch.where(surer, targets.index[:, 0], self.predicted[here])
        self._surest[here] = torch.where(surer, first, self._surest[here])

    def candidates(self, count: int, views: int) -> tuple[Tensor, Tensor]:
        """Margins (n,) and places (n,) of the block's n <= count most contradicted rows."""
        margin = torch.where(self.predicted >= 0, self.margin / views, torch.full_like(self.margin, -torch.inf))
        values, places = margin.topk(min(count, len(margin)))
        kept = values > 0
        return values[kept], places[kept]


class ContradictedRows:
    """The most contradicted rows so far.

    Args:
        count: how many to keep.

    Attributes:
        found: (n, 7) float64, largest margin first: margin, row, label, predicted class, the means over views of the
            label's and the predicted class's probability, row digest. Whole numbers below 2^53 are exact.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self.found: NDArray[np.float64] = np.zeros((0, 7))

    def add(
        self,
        numbers: NDArray[np.int64],
        block: BlockRows,
        views: int,
        labels: NDArray[np.int64],
        digests: NDArray[np.uint16],
    ) -> None:
        """Count a block: its rows' numbers, their sums over `views` views, labels and digests, each (rows,)."""
        values, places = block.candidates(self._count, views)
        here = places.numpy()
        columns = (
            values.numpy(),
            numbers[here],
            labels[here],
            block.predicted[places].numpy(),
            (block.label[places] / views).numpy(),
            (block.first[places] / views).numpy(),
            digests[here],
        )
        self.add_found(np.stack(columns, axis=1).astype(np.float64))

    def add_found(self, found: NDArray[np.float64]) -> None:
        """Count what another part of the store holds, as `found`."""
        both = np.concatenate([self.found, found])
        self.found = both[np.lexsort((both[:, 1], -both[:, 0]))][: self._count]

    def result(self, names: list[str]) -> tuple[Contradiction, ...]:
        """Largest margin first, with the classes' names."""
        return tuple(
            Contradiction(
                row=int(row),
                label=int(label),
                label_name=names[int(label)],
                predicted=int(predicted),
                predicted_name=names[int(predicted)],
                margin=margin,
                label_probability=label_probability,
                predicted_probability=predicted_probability,
                row_digest=int(digest),
            )
            for margin, row, label, predicted, label_probability, predicted_probability, digest in self.found.tolist()
        )


def confused_pairs(means: NDArray[np.float32], seen: NDArray[np.bool_], names: list[str]) -> tuple[ConfusedPair, ...]:
    """The pairs of classes with the largest mean probability for one another, both directions together.

    Args:
        means: (K, K) float32, row y the mean p over rows labelled y.
        seen: (K,) whether a class has rows; pairs with one that has none are left out.
        names: K names.
    """
    both = (means + means.T) * seen[:, None] * seen[None, :]
    upper = np.triu(both, k=1)
    flat = np.argsort(-upper, axis=None, kind="stable")[:PAIRS]
    pairs = [divmod(int(place), len(means)) for place in flat if upper.flat[place] > 0]
    return tuple(
        ConfusedPair(
            first=a,
            second=b,
            first_name=names[a],
            second_name=names[b],
            forward=float(means[a, b]),
            backward=float(means[b, a]),
        )
        for a, b in pairs
    )
