"""The cost model against stores that are really written: files exactly, bytes within 15 % without having seen any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kdcache.cost_model import expected_rates, measured_rates, planned_manifest, store_size
from kdcache.cost_of_use import (
    Prices,
    dump_time,
    money,
    pull_requests,
    push_requests,
)
from kdcache.loader.target_store import _Table, open_store
from kdcache.store.layout import layout_of
from kdcache.store.manifest_file import read_manifest
from tests.logit_store import random_logits, write_logit_store
from tests.store_cases import bytes_and_files, manifest_of, write_store

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "logits" / "cifar100_test_resnet56_f32.npz"


@pytest.mark.parametrize(
    ("rows", "classes", "topk", "views", "precision"),
    [
        (900, 10, 10, 1, "default"),
        (5000, 100, 1, 1, "compact"),
        (5000, 100, 10, 3, "default"),
        (3000, 300, 300, 1, "exact"),
        (2500, 1000, 10, 2, "exact"),
        (1200, 1000, 100, 1, "compact"),
        (600, 21_841, 100, 1, "default"),
    ],
)
def test_bytes_are_expected_within_15_percent(
    rows: int, classes: int, topk: int, views: int, precision: str, tmp_path: Path
) -> None:
    logits, labels = random_logits(rows, classes)
    logits.scatter_add_(1, labels[:, None], torch.full((rows, 1), 6.0))  # as sure of the label as trained teachers are
    kinds = [logits + 0.2 * view for view in range(views)]
    path = write_logit_store(tmp_path / "s", kinds, labels, topk=topk, precision=precision)
    planned = planned_manifest(rows=rows, classes=classes, topk=topk, views=views, precision=precision)
    found, files = bytes_and_files(path)
    assert store_size(planned).bytes == pytest.approx(found, rel=0.15)
    assert store_size(planned).objects == files


@pytest.mark.shared
@pytest.mark.skipif(not REAL.exists(), reason=f"needs the shared real logits, {REAL.name}")
@pytest.mark.parametrize(("topk", "precision"), [(5, "default"), (10, "exact"), (40, "compact"), (100, "default")])
def test_bytes_of_a_real_teacher_are_expected_within_15_percent(topk: int, precision: str, tmp_path: Path) -> None:
    archive = np.load(REAL)
    logits = torch.from_numpy(archive["resnet56"].astype(np.float32))
    labels = torch.from_numpy(archive["labels"].astype(np.int64))
    digests = np.random.default_rng(0).integers(65_536, size=len(labels)).astype(np.uint16)
    path = write_logit_store(tmp_path / "s", [logits], labels, topk=topk, precision=precision, digests=digests)
    planned = planned_manifest(rows=len(labels), classes=100, topk=topk, precision=precision)
    assert store_size(planned).bytes == pytest.approx(bytes_and_files(path)[0], rel=0.15)


def test_optional_fields_and_features_count(tmp_path: Path) -> None:
    shapes = {"class_weight": [300, 16], "features/penultimate": [16], "view_params": [3]}
    manifest = manifest_of(rows=3000, views=2, fields=("class_weight", "view_params"), shapes=shapes)
    write_store(tmp_path / "s", manifest)
    found, files = bytes_and_files(tmp_path / "s")
    size = store_size(manifest)
    assert size.objects == files
    assert size.bytes == pytest.approx(found, rel=0.15)
    wide = planned_manifest(
        rows=3000, classes=300, topk=5, views=2, features={"features/penultimate": (16,)}, weight_columns=16
    )
    assert store_size(wide).array_bytes["features/penultimate"] == pytest.approx(2 * 3000 * 32, rel=0.1)
    assert store_size(wide).array_bytes["class_weight"] == pytest.approx(300 * 16 * 4, rel=0.1)


def test_rates_measured_on_a_store_give_its_bytes_back(tmp_path: Path) -> None:
    manifest = manifest_of(rows=3000, views=1)
    write_store(tmp_path / "s", manifest)
    sizes = {
        name: sum(path.stat().st_size for path in (tmp_path / "s" / name / "c").rglob("*") if path.is_file())
        for name in layout_of(manifest)
    }
    again = store_size(read_manifest(tmp_path / "s"), measured_rates(manifest, sizes, manifest))
    assert again.array_bytes == pytest.approx(sizes, rel=0.01)


def test_twice_the_views_are_less_than_twice_the_bytes_and_no_more_ledger_than_blocks() -> None:
    one, two = (store_size(planned_manifest(rows=10**6, classes=1000, topk=10, views=views)) for views in (1, 2))
    assert one.bytes < two.bytes < 2 * one.bytes  # labels and row digests are kept once
    assert two.array_bytes["commit"] - one.array_bytes["commit"] == 32 * 16


def test_what_is_resident_is_what_a_target_store_holds(tmp_path: Path) -> None:
    for classes in (200, 300, 40_000):  # 1, 2 and (for torch has no gather of uint16) 4 bytes a class
        logits, labels = random_logits(700, classes)
        path = write_logit_store(tmp_path / str(classes), [logits], labels, topk=4)
        table = open_store(path)._table(0, 4)
        assert isinstance(table, _Table)
        held = sum(part.nbytes for part in (table.classes, table.log_probs, table.tail))
        assert store_size(read_manifest(path)).resident_bytes == held


def test_larger_blocks_are_fewer_objects_and_requests_and_hardly_fewer_bytes() -> None:
    small, large = (
        planned_manifest(rows=10**6, classes=1000, topk=10, block_rows=block_rows) for block_rows in (1024, 65_536)
    )
    assert store_size(small).objects > 50 * store_size(large).objects
    for requests in (push_requests, pull_requests):
        assert requests(small, store_size(small)).total > 40 * requests(large, store_size(large)).total
    assert 0.8 < store_size(large).bytes / store_size(small).bytes < 1


def test_large_objects_go_up_in_parts() -> None:
    manifest = planned_manifest(rows=65_536, classes=100_000, topk=512, precision="exact", block_rows=65_536)
    size = store_size(manifest)
    assert size.largest_chunk > 32 * 2**20
    assert push_requests(manifest, size).put > sum(size.array_objects.values()) + size.metadata_objects + 6


def test_seconds_shrink_with_workers_and_never_below_the_start() -> None:
    manifest = planned_manifest(rows=10**6, classes=1000, topk=10, views=4)
    times = [dump_time(manifest, rows_per_second=1000, workers=workers) for workers in (1, 2, 8)]
    assert times[0].forward == pytest.approx(4000)
    assert times[1].forward == pytest.approx(2000)
    assert times[0].total > times[1].total > times[2].total > times[2].start
    beside = dump_time(manifest, rows_per_second=1000, overlapped=True)
    assert beside.total == pytest.approx(beside.start + beside.forward + beside.seal)
    # few blocks: nine of them take two workers as long as ten
    odd = planned_manifest(rows=9 * 1024, classes=10, topk=5, block_rows=1024)
    assert dump_time(odd, rows_per_second=1024, workers=2).forward == pytest.approx(5)


def test_money_is_linear_in_the_prices() -> None:
    manifest = planned_manifest(rows=10**6, classes=1000, topk=10)
    size, time = store_size(manifest), dump_time(manifest, rows_per_second=1000)
    prices = {"device_hour": 2.0, "gb_month": 0.02, "put_thousand": 0.005, "get_thousand": 0.0004, "egress_gb": 0.09}
    one = money(manifest, size, time, Prices(as_of="test", **prices))
    two = money(manifest, size, time, Prices(as_of="test", **{name: 2 * price for name, price in prices.items()}))
    assert two.dump == pytest.approx(2 * one.dump)
    assert two.reading == pytest.approx(2 * one.reading)
    assert one.month == pytest.approx(size.bytes / 1e9 * 0.02)
    assert one.dump == pytest.approx(time.total / 1800)


def test_words_may_take_fewer_bits_than_classes_that_are_alike() -> None:
    manifest = planned_manifest(rows=10**6, classes=10_000, topk=64)
    assert expected_rates(manifest, index_bits=11.5)["topk_index"] < expected_rates(manifest)["topk_index"]
