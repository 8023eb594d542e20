"""Blocks of a store made by several processes: the bytes of one, whoever is killed; what is committed is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdcache.errors import ResourceError
from kdcache.specs import StoreManifest
from kdcache.store.verify import verify_store
from kdcache.store.writer import StoreWriter
from kdcache.workers.filling import Filling, fill
from kdcache.workers.tasks import Workforce
from tests.store_cases import manifest_of, store_bytes
from tests.unit.workers.work import random_columns

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def manifest() -> StoreManifest:
    return manifest_of(rows=1000, views=2, classes=40)  # eight blocks


@pytest.fixture(scope="module")
def straight(manifest: StoreManifest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The store that one process makes."""
    path = tmp_path_factory.mktemp("straight") / "store"
    make(path, manifest, Workforce())
    return store_bytes(path)


def make(path: Path, manifest: StoreManifest, force: Workforce, **request: Any) -> None:
    work = {"folder": "", "deaths": 0, **request}
    filling = Filling(name="fill", location=str(path), factory=random_columns, request=work)
    with StoreWriter.open(path, manifest) as writer:
        fill(writer, filling, force, random_columns(work, manifest))
        writer.seal()


def test_a_killed_worker_costs_its_block_and_the_store_is_that_of_one_process(
    manifest: StoreManifest, straight: dict[str, bytes], tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "deaths").mkdir()
    make(tmp_path / "store", manifest, Workforce(workers=2), folder=str(tmp_path / "deaths"), deaths=1)
    assert "a worker was killed" in capsys.readouterr().err
    assert store_bytes(tmp_path / "store") == straight


def test_a_block_that_kills_every_worker_ends_with_one_error_and_the_rest_is_kept(
    manifest: StoreManifest, straight: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdcache.coordination.DEATHS_IN_A_ROW", 2)
    (tmp_path / "deaths").mkdir()
    with pytest.raises(ResourceError, match="killed one after another"):
        make(tmp_path / "store", manifest, Workforce(workers=2), folder=str(tmp_path / "deaths"), deaths=99)
    report = verify_store(tmp_path / "store")
    assert (report.exit_code, report.problems) == (3, ())
    assert 1 <= report.blocks_checked <= 7
    make(tmp_path / "store", manifest, Workforce())
    assert store_bytes(tmp_path / "store") == straight
