"""Clustering of classes: scipy's average linkage is the reference; the order keeps clusters together."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from kdcache.stats.clusters import class_distances, cluster

hierarchy = pytest.importorskip("scipy.cluster.hierarchy", reason="scipy (a reference, from scikit-learn) is not there")


def _distances(count: int, seed: int) -> NDArray[np.float64]:
    points = np.random.default_rng(seed).normal(size=(count, 3))
    found: NDArray[np.float64] = np.linalg.norm(points[:, None] - points[None], axis=2)
    return found


@pytest.mark.parametrize("count", [2, 3, 17, 60])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_tree_is_that_of_average_linkage(count: int, seed: int) -> None:
    distance = _distances(count, seed)
    tree = cluster(distance)
    reference = hierarchy.linkage(distance[np.triu_indices(count, 1)], "average")
    assert [height for _, _, height in tree.merges] == pytest.approx(reference[:, 2].tolist())
    for groups in {1, 2, min(5, count), count}:
        numbers = hierarchy.fcluster(reference, groups, "maxclust")
        expected = {frozenset(np.flatnonzero(numbers == number).tolist()) for number in set(numbers.tolist())}
        assert {frozenset(group) for group in tree.groups(groups)} == expected


def test_every_cluster_stands_together_in_the_order() -> None:
    tree = cluster(_distances(40, 3))
    assert sorted(tree.order.tolist()) == list(range(40))
    place = {int(leaf): position for position, leaf in enumerate(tree.order)}
    for count in (2, 7, 20):
        flat = [leaf for group in tree.groups(count) for leaf in group]
        assert flat == tree.order.tolist()
        for group in tree.groups(count):
            assert sorted(place[leaf] for leaf in group) == list(range(place[group[0]], place[group[0]] + len(group)))


def test_one_class_and_none() -> None:
    assert cluster(np.zeros((1, 1))).order.tolist() == [0]
    assert cluster(np.zeros((0, 0))).groups(1) == []


def test_classes_the_teacher_confuses_are_close() -> None:
    means = np.array([[0.8, 0.19, 0.01], [0.15, 0.85, 0.0], [0.01, 0.0, 0.99]])
    distance = class_distances(means)
    assert distance[0, 1] < distance[0, 2] < distance[1, 2]
    assert np.array_equal(distance, distance.T)
    assert np.isfinite(distance).all()
    assert cluster(distance).groups(2)[0] in ([0, 1], [1, 0], [2])
