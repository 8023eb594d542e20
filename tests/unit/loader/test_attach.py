"""In the user's own loop: the same triples whatever the workers; other data is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import kdcache
from kdcache.errors import ConfigError, IncompatibleError
from kdcache.loader import InputReader
from kdcache.models.preprocess import Preprocessing
from kdcache.specs import PreprocessingSpec
from tests.small_store import SmallStore, small_source, write_small_store


class Plain(Dataset[tuple[Tensor, int]]):
    """What a user has: transformed tensors and labels, without a list of labels."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        self.marks = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.marks[index])


class Listed(Plain):
    """The same with `.targets`, as torchvision's data sets have."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        super().__init__(images, labels)
        self.targets = labels.tolist()


class Pair(NamedTuple):
    """Inputs that a user's data set gives two of."""

    image: Tensor
    brightness: Tensor


class Paired(Plain):
    """Items whose input is a namedtuple."""

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return Pair(image, image.mean()), label


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    return write_small_store(tmp_path_factory.mktemp("attach") / "s.zarr", small_source(100))


@pytest.fixture
def store(small: SmallStore) -> kdcache.TargetStore:
    return kdcache.open_store(small.path)


def _plain(small: SmallStore) -> Plain:
    return Plain(small.source.examples, small.source.labels)


def test_a_list_of_labels_from_before_a_transform_is_not_compared(
    small: SmallStore, store: kdcache.TargetStore
) -> None:
    data = Listed(small.source.examples, small.source.labels)
    data.targets = [label + 1 for label in data.targets]
    with pytest.raises(IncompatibleError, match="the data set says label"):
        kdcache.DistillLoader(data, store, batch_size=20)
    data.target_transform = lambda label: label - 1  # type: ignore[attr-defined]
    assert len(list(kdcache.DistillLoader(data, store, batch_size=20))) == 5


def test_inputs_that_are_a_namedtuple_stay_one(small: SmallStore, store: kdcache.TargetStore) -> None:
    data = Paired(small.source.examples, small.source.labels)
    inputs, labels, _ = next(iter(kdcache.DistillLoader(data, store, batch_size=20)))
    assert isinstance(inputs, Pair)
    assert torch.equal(inputs.brightness, inputs.image.mean(dim=(1, 2, 3)))
    assert len(labels) == 20


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_triples_belong_together_with_any_number_of_workers(
    small: SmallStore, store: kdcache.TargetStore, workers: int
) -> None:
    loader = kdcache.DistillLoader(_plain(small), store, batch_size=32, seed=1, workers=workers)
    for epoch in range(2):
        seen = []
        for rows, (inputs, labels, targets) in zip(loader.rows(epoch), loader, strict=True):
            assert torch.equal(inputs, _plain(small).images[rows])
            assert labels.tolist() == small.source.labels[rows].tolist()
            assert torch.equal(targets.index, store.targets(rows).index)
            seen += rows.tolist()
        assert sorted(seen) == list(range(100))
    assert loader.epoch == 2


def test_a_loader_over_a_kdcache_source_gives_the_same_rows(small: SmallStore, store: kdcache.TargetStore) -> None:
    reader = InputReader(small.source, Preprocessing(PreprocessingSpec()))
    ours = kdcache.DistillLoader(reader, store, batch_size=32, seed=1)
    theirs = kdcache.DistillLoader(_plain(small), store, batch_size=32, seed=1)
    for (inputs, labels, _), (other, also, _) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(inputs, other)
        assert torch.equal(labels, also)


def test_a_resumed_loader_continues_with_the_epoch_it_is_given(small: SmallStore, store: kdcache.TargetStore) -> None:
    straight = kdcache.DistillLoader(_plain(small), store, batch_size=50, seed=1)
    list(straight)
    later = kdcache.DistillLoader(_plain(small), store, batch_size=50, seed=1, epoch=1)
    for (_, one, _), (_, other, _) in zip(straight, later, strict=True):
        assert torch.equal(one, other)


def test_attached_dataset_carries_rows_and_its_workers_carry_no_store(
    small: SmallStore, store: kdcache.TargetStore
) -> None:
    attached = kdcache.AttachedDataset(_plain(small), store)
    inputs, labels, rows = next(iter(DataLoader(attached, batch_size=10, shuffle=True, num_workers=1)))
    assert len(inputs) == 10
    targets = attached.targets(rows)
    assert torch.equal(targets.label, labels)
    in_worker = pickle.loads(pickle.dumps(attached))
    with pytest.raises(ConfigError, match="worker"):
        in_worker.targets(rows)


@pytest.mark.parametrize("kind", [kdcache.AttachedDataset, kdcache.DistillLoader])
def test_another_length_or_other_listed_labels_are_refused_at_once(
    small: SmallStore, store: kdcache.TargetStore, kind: type
) -> None:
    more = {"batch_size": 10} if kind is kdcache.DistillLoader else {}
    with pytest.raises(IncompatibleError, match="99 rows"):
        kind(Plain(small.source.examples[1:], small.source.labels[1:]), store, **more)
    permuted = np.roll(small.source.labels, 1)
    with pytest.raises(IncompatibleError, match="row"):
        kind(Listed(small.source.examples, permuted), store, **more)
    kind(Listed(small.source.examples, small.source.labels), store, **more)


def test_unlisted_labels_are_compared_as_they_pass(small: SmallStore, store: kdcache.TargetStore) -> None:
    wrong = small.source.labels.copy()
    wrong[42] = (wrong[42] + 1) % 7
    loader = kdcache.DistillLoader(Plain(small.source.examples, wrong), store, batch_size=32)
    with pytest.raises(IncompatibleError, match="row 42"):
        list(loader)


def test_a_whole_step_of_the_users_own_loop(small: SmallStore, tmp_path: Path) -> None:
    store = kdcache.open_store(small.path)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 7))
    method = kdcache.methods["kd-topk"]
    for inputs, labels, targets in kdcache.DistillLoader(_plain(small), store, batch_size=25, seed=0):
        loss = method(model(inputs), targets, labels, temperature=4.0, alpha=0.9)
        assert loss.shape == (25,)
        loss.mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
