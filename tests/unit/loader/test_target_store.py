"""Targets by row number: what the store holds, narrowed exactly, and refusals before anything is gathered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import kdcache
from kdcache.errors import ChecksumError, ConfigError, IncompatibleError, UnfinishedStoreError
from kdcache.loader import TargetStore
from kdcache.store.reader import open_reader
from kdcache.targets.encode import encode_topk
from kdcache.targets.tail import narrow
from tests.small_store import SmallStore, small_source, write_small_store


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    return write_small_store(tmp_path_factory.mktemp("targets") / "s.zarr", small_source(200), topk=4)


def test_targets_are_the_teachers_opinion_of_the_rows_asked_for(small: SmallStore) -> None:
    rows = torch.tensor([5, 199, 0, 5])
    targets = kdcache.open_store(small.path).targets(rows)
    truth = small.logits[rows].log_softmax(dim=1)
    best = truth.topk(4, dim=1)
    assert torch.equal(targets.index, best.indices)
    torch.testing.assert_close(targets.log_prob, best.values, atol=0, rtol=2**-7)  # "default" keeps 8 bits
    assert targets.label.tolist() == small.source.labels[rows.numpy()].tolist()
    torch.testing.assert_close(targets.label_log_prob, truth[range(4), targets.label], atol=0, rtol=2**-7)
    assert targets.index.dtype == torch.int64
    assert targets.tail.dtype == torch.float32


@pytest.mark.parametrize("kind", [list, np.asarray, torch.tensor])
def test_rows_may_be_list_array_or_tensor(small: SmallStore, kind: object) -> None:
    store = kdcache.open_store(small.path)
    assert torch.equal(store.targets(kind([3, 1])).index, store.targets(torch.tensor([3, 1])).index)  # type: ignore[operator]


def test_narrowed_table_equals_narrowing_each_batch(small: SmallStore) -> None:
    store = kdcache.open_store(small.path)
    rows = torch.arange(200)
    once, each = store.targets(rows, topk=2), narrow(store.targets(rows), 2)
    for name in ("index", "log_prob", "tail", "label", "label_log_prob"):
        torch.testing.assert_close(getattr(once, name), getattr(each, name), rtol=0, atol=0)
    labels = torch.from_numpy(small.source.labels)
    fresh = encode_topk(small.logits, labels, topk=2)
    torch.testing.assert_close(once.tail[:, 0], fresh.tail[:, 0], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"rows": [200]}, ConfigError),
        ({"rows": [-1]}, ConfigError),
        ({"rows": [0.5]}, ConfigError),
        ({"rows": [[1]]}, ConfigError),
        ({"rows": [1], "view": 1}, ConfigError),
        ({"rows": [1], "topk": 5}, IncompatibleError),
        ({"rows": [1], "topk": 0}, ConfigError),
    ],
)
def test_what_the_store_does_not_hold_is_refused(
    small: SmallStore, arguments: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        kdcache.open_store(small.path).targets(**arguments)  # type: ignore[arg-type]


def test_no_rows_give_no_targets(small: SmallStore) -> None:
    assert len(kdcache.open_store(small.path).targets(torch.zeros(0, dtype=torch.int64))) == 0


def test_class_weight_is_the_teachers_last_layer_or_none(small: SmallStore, tmp_path: Path) -> None:
    weight = kdcache.open_store(small.path).class_weight
    assert weight is not None
    torch.testing.assert_close(weight, torch.from_numpy(small.weight), atol=1e-3, rtol=1e-3)
    without = write_small_store(tmp_path / "s.zarr", small_source(20), with_weight=False)
    assert kdcache.open_store(without.path).class_weight is None


def test_an_unfinished_store_is_refused(tmp_path: Path) -> None:
    unfinished = write_small_store(tmp_path / "s.zarr", small_source(20), seal=False)
    with pytest.raises(UnfinishedStoreError):
        kdcache.open_store(unfinished.path)


def test_damaged_bytes_are_found_on_first_use(tmp_path: Path) -> None:
    small = write_small_store(tmp_path / "s.zarr", small_source(100))
    chunk = max((small.path / "topk_log_prob" / "c").rglob("*"), key=lambda path: path.is_file())
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(bytes(content))
    store = kdcache.open_store(small.path)
    with pytest.raises(ChecksumError):
        store.targets([0])


def test_batches_pass_over_all_rows_in_order(small: SmallStore) -> None:
    store = kdcache.open_store(small.path)
    labels = torch.cat([targets.label for targets in store.batches(64)])
    assert labels.tolist() == small.source.labels.tolist()


def test_a_view_larger_than_memory_gives_the_same_targets(small: SmallStore, tmp_path: Path) -> None:
    mapped = TargetStore(open_reader(small.path, ram_budget=1, cache=tmp_path))
    resident = kdcache.open_store(small.path)
    rows = torch.tensor([7, 3, 150])
    for topk in (None, 2):
        for name in ("index", "log_prob", "tail", "label", "label_log_prob"):
            assert torch.equal(
                getattr(mapped.targets(rows, topk=topk), name), getattr(resident.targets(rows, topk=topk), name)
            )
