"""Classes the teacher finds alike, side by side: average-linkage clustering of its mean opinion. numpy only.

scipy would do the clustering, but nothing else in kdcache needs it. The nearest-neighbour chain takes O(K^2) time and
the distances O(K^2) memory (Murtagh 1983; average linkage is reducible, so the chain finds the same tree).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SMALLEST = 1e-6  # below it a mean probability is the tail's even share, not an opinion


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A clustering.

    Attributes:
        merges: K - 1 merges in rising height: (first, second, height); below K a leaf, K + i the i-th merge.
        order: (K,) int64 leaves from left to right, turned so that neighbours are close.
    """

    merges: tuple[tuple[int, int, float], ...]
    order: NDArray[np.int64]

    def groups(self, count: int) -> list[list[int]]:
        """The leaves in `count` clusters, in order of appearance."""
        leaves = len(self.order)
        members: dict[int, list[int]] = {leaf: [leaf] for leaf in range(leaves)}
        for number, (first, second, _) in enumerate(self.merges[: max(leaves - count, 0)]):
            members[leaves + number] = members.pop(first) + members.pop(second)
        place = {int(leaf): position for position, leaf in enumerate(self.order)}
        found = [sorted(group, key=place.__getitem__) for group in members.values()]
        return sorted(found, key=lambda group: place[group[0]])


def class_distances(means: NDArray[np.floating]) -> NDArray[np.float64]:
    """(K, K) distances: minus the log of the mean probability two classes give one another; 0 on the diagonal."""
    both = (means.astype(np.float64) + means.T) / 2
    distance: NDArray[np.float64] = -np.log(np.maximum(both, SMALLEST))
    np.fill_diagonal(distance, 0.0)
    return distance


def cluster(distance: NDArray[np.float64]) -> Tree:
    """Average linkage of a symmetric (K, K) matrix of distances."""
    leaves = len(distance)
    merges = _chain(distance.copy()) if leaves > 1 else []
    merges.sort(key=lambda merge: merge[2])
    numbered, parent = [], list(range(leaves))
    top = list(range(leaves))  # of each leaf's set: the number of its newest merge
    for number, (a, b, height) in enumerate(merges):
        first, second = _find(parent, a), _find(parent, b)
        numbered.append((top[first], top[second], height))
        parent[second] = first
        top[first] = leaves + number
    return Tree(merges=tuple(numbered), order=_turned(numbered, distance))


def _chain(distance: NDArray[np.float64]) -> list[tuple[int, int, float]]:
    """Merges as (leaf of one cluster, leaf of the other, height), in the order the chain finds them."""
    leaves = len(distance)
    np.fill_diagonal(distance, np.inf)
    size = np.ones(leaves)
    alive = np.ones(leaves, dtype=bool)
    merges: list[tuple[int, int, float]] = []
    chain: list[int] = []
    while len(merges) < leaves - 1:
        if not chain:
            chain = [int(np.argmax(alive))]
        here = chain[-1]
        nearest = int(np.argmin(distance[here]))
        if len(chain) > 1 and distance[here, chain[-2]] <= distance[here, nearest]:
            nearest = chain[-2]
        if len(chain) > 1 and nearest == chain[-2]:
            del chain[-2:]
            merges.append((here, nearest, float(distance[here, nearest])))
            total = size[here] + size[nearest]
            mean = (size[here] * distance[here] + size[nearest] * distance[nearest]) / total
            mean[[here, nearest]] = np.inf
            distance[here], distance[:, here] = mean, mean
            distance[nearest], distance[:, nearest] = np.inf, np.inf
            size[here], alive[nearest] = total, False
        else:
            chain.append(nearest)
    return merges


def _find(parent: list[int], leaf: int) -> int:
    while parent[leaf] != leaf:
        parent[leaf] = parent[parent[leaf]]
        leaf = parent[leaf]
    return leaf


def _turned(merges: list[tuple[int, int, float]], distance: NDArray[np.float64]) -> NDArray[np.int64]:
    """Leaves from left to right; each merge turns its two halves so that the leaves that meet are close."""
    leaves = len(distance)
    rows: dict[int, list[int]] = {leaf: [leaf] for leaf in range(leaves)}
    for number, (first, second, _) in enumerate(merges):
        a, b = rows.pop(first), rows.pop(second)
        ways = [(a, b), (a[::-1], b), (a, b[::-1]), (a[::-1], b[::-1])]
        left, right = min(ways, key=lambda way: distance[way[0][-1], way[1][0]])
        rows[leaves + number] = left + right
    return np.array(next(iter(rows.values()), []), dtype=np.int64)
