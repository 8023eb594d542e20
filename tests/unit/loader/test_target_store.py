"""Targets by row number: what the store holds, narrowed exactly, and refusals before anything is gathered."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable
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
from tests.store_cases import manifest_of, write_store


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


VIEWS, ROWS = 5, 6000


@pytest.fixture(scope="module")
def viewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed store of five views of different values with parameters."""
    place = tmp_path_factory.mktemp("viewed") / "s.zarr"
    fields, shapes = ("view_params",), {"view_params": [4]}
    write_store(place, manifest_of(rows=ROWS, classes=50, views=VIEWS, fields=fields, shapes=shapes))
    return place


def epochs(store: TargetStore, views: list[int], after: Callable[[], None] = lambda: None) -> None:
    """Read views in turn, the next one announced, as the training loop does."""
    rows = torch.arange(0, ROWS, 7)
    for view, following in zip(views, [*views[1:], 0], strict=True):
        store.targets(rows, view)
        store.prefetch(following)
        store.targets(rows, view)
        after()


def test_views_used_in_turn_give_what_each_view_holds(viewed: Path) -> None:
    store = kdcache.open_store(viewed)
    rows = np.arange(0, ROWS, 7)
    for view in [0, 1, 2, 3, 4, 0, 3, 1, 1, 4]:
        targets = store.targets(rows, view)
        store.prefetch((view + 1) % VIEWS)
        stored = open_reader(viewed, threads=1).view(view)
        assert np.array_equal(targets.index.numpy(), stored.topk_index[rows])
        assert np.array_equal(targets.log_prob.numpy(), stored.topk_log_prob[rows].astype(np.float32))
        assert stored.view_params is not None
        assert np.array_equal(store.view_params(rows, view), stored.view_params[rows])


def test_memory_is_two_views_however_many_there_are(viewed: Path) -> None:
    codec = open_reader(viewed).manifest.codec
    one_view = ROWS * ((codec.topk + 1) * (1 + 2) + 3 * 2 + 4)  # classes, log-probs, tail, parameters
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        store = kdcache.open_store(viewed)
        held: list[int] = []

        def measure() -> None:
            store._reader._background.submit(int).result()  # until what is prefetched is there
            held.append(tracemalloc.get_traced_memory()[0] - before)

        epochs(store, [*range(VIEWS), *range(VIEWS)], measure)
    finally:
        tracemalloc.stop()
    row_arrays = ROWS * (2 + 2)  # label, row_digest
    assert max(held) < 2.5 * one_view + row_arrays, [count / one_view for count in held]


def test_a_view_read_once_is_held_once(viewed: Path) -> None:
    store = kdcache.open_store(viewed)
    store.targets([0], 2)
    assert store._reader._current is None


def test_two_views_stay_when_they_alternate(viewed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = kdcache.open_store(viewed)
    store.targets([0], 1)
    store.targets([0], 3)
    monkeypatch.setattr(store, "_load", lambda view, topk: pytest.fail(f"view {view} was decoded again"))
    for view in (1, 3, 1, 3):
        store.targets([0], view)


def test_a_second_store_over_the_same_bytes_decodes_nothing(viewed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = kdcache.open_store(viewed)
    expected = first.targets([5, 7], 2)
    second = TargetStore(open_reader(viewed))
    monkeypatch.setattr(second._reader, "view", lambda view: pytest.fail("decoded again"))
    assert torch.equal(second.targets([5, 7], 2).log_prob, expected.log_prob)
    assert torch.equal(second.targets([5, 7], 2, topk=1).log_prob, expected.log_prob[:, :1])


def test_damage_in_an_announced_view_is_raised_when_it_is_asked_for(viewed: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(viewed, tmp_path / "broken"))
    path = broken / "tail" / "c" / "1" / "0" / "0"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    store = kdcache.open_store(broken)
    store.targets([0], 0)
    store.prefetch(1)
    store.targets([0], 0)
    with pytest.raises(ChecksumError, match="'tail'"):
        store.targets([0], 1)
    assert len(store.targets([0], 2)) == 1


def test_an_unknown_view_is_refused_when_announced(viewed: Path) -> None:
    with pytest.raises(ConfigError, match="view 5"):
        kdcache.open_store(viewed).prefetch(VIEWS)
