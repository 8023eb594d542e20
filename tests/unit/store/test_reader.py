"""Reading: verified once, resident, one view at a time, from RAM or from a checked memory-mapped cache."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdcache.errors import ChecksumError, ConfigError, IncompatibleError, ResourceError
from kdcache.store import resident
from kdcache.store.blocks import BlockId
from kdcache.store.info import describe
from kdcache.store.layout import layout_of
from kdcache.store.reader import open_reader
from tests.store_cases import columns_of, manifest_of, write_store

MANIFEST = manifest_of(rows=600, views=3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sealed") / "store"
    write_store(place, MANIFEST)
    return place


def test_opening_reads_metadata_only_and_is_quick(store: Path) -> None:
    open_reader(store)
    started = time.perf_counter()
    open_reader(store)
    assert time.perf_counter() - started < 0.25  # 0.01 s on an idle machine; benchmarks/store.py measures it


def test_views_are_read_only_and_differ(store: Path) -> None:
    reader = open_reader(store)
    first, second = reader.view(0), reader.view(1)
    assert first.view == 0
    assert (first.topk_index != second.topk_index).any()
    with pytest.raises(ValueError, match="read-only"):
        second.topk_index[0, 0] = 1
    with pytest.raises(ConfigError, match="expected 0 to 2"):
        reader.view(3)


def test_a_view_in_use_is_verified_once_per_process(store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    first = open_reader(copy)
    held = first.view(2)
    assert open_reader(copy).view(2) is held


def test_prefetch_gives_the_same_columns(store: Path) -> None:
    reader = open_reader(store)
    reader.view(0)
    reader.prefetch(1)
    reader.prefetch(1)
    ahead = reader.view(1)
    assert (ahead.topk_index[:256] == columns_of(MANIFEST, BlockId(1, 0, 0, 256))["topk_index"]).all()
    reader.close()
    assert (reader.view(1).tail == ahead.tail).all()


def test_a_prefetch_error_is_raised_where_the_view_is_asked_for(store: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(store, tmp_path / "broken"))
    path = broken / "tail" / "c" / "1" / "0" / "0"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    reader = open_reader(broken)
    reader.view(0)
    reader.prefetch(1)
    with pytest.raises(ChecksumError, match="'tail'"):
        reader.view(1)
    assert reader.view(2).view == 2


def test_a_view_over_the_budget_goes_to_a_cache_that_is_checked_and_reused(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_ram = open_reader(store).view(0).topk_index.copy()
    monkeypatch.setattr("kdcache.store.reader._LOADED", {})
    reader = open_reader(store, ram_budget=1000, cache=tmp_path)
    mapped = reader.view(0).topk_index
    assert isinstance(mapped.base, np.memmap) or isinstance(mapped, np.memmap)
    assert (mapped == in_ram).all()
    assert (reader.labels == open_reader(store).labels).all()
    folder = tmp_path / reader.manifest.root_digest / "view-0"
    built = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    monkeypatch.setattr("kdcache.store.reader._LOADED", {})
    open_reader(store, ram_budget=1000, cache=tmp_path).view(0)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == built

    data = bytearray((folder / "tail.bin").read_bytes())
    data[100] ^= 1
    (folder / "tail.bin").write_bytes(bytes(data))
    monkeypatch.setattr("kdcache.store.reader._LOADED", {})
    healed = open_reader(store, ram_budget=1000, cache=tmp_path).view(0)
    assert (healed.tail == open_reader(store).view(0).tail).all()
    assert (folder / "tail.bin").read_bytes() != bytes(data)
    assert not list(tmp_path.rglob("*.partial"))


def test_what_a_killed_process_left_of_a_cache_goes_and_several_build_it_once(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = open_reader(store)
    left = tmp_path / reader.manifest.root_digest / "view-0.0123abcd.partial"
    other = tmp_path / reader.manifest.root_digest / "view-1.0123abcd.partial"
    for folder in (left, other):
        folder.mkdir(parents=True)
        (folder / "tail.bin").write_bytes(bytes(100))
    build, built, start = resident._build_maps, [], threading.Barrier(3)

    def slowly(*arguments: Any) -> None:
        built.append(arguments[-1])
        time.sleep(0.2)
        build(*arguments)

    monkeypatch.setattr(resident, "_build_maps", slowly)
    views: list[resident.LoadedView] = []

    def load() -> None:
        start.wait()
        layout = layout_of(reader.manifest)
        views.append(resident.load_view_mapped(store, reader.manifest, layout, 0, reader.digest, cache=tmp_path))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(views) == 3
    assert all((found.columns.tail == reader.view(0).tail).all() for found in views)
    assert len(built) == 1
    assert not left.exists()
    assert other.exists(), "another view's may be of a process that works on it"


def test_no_room_for_the_cache_is_one_clear_error(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdcache.store.reader._LOADED", {})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(resident.shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(ResourceError, match="bytes of cache, 10 are free"):
        open_reader(store, ram_budget=0, cache=tmp_path).view(0)
    assert not list(tmp_path.rglob("*.bin"))


def test_streaming_gives_every_block_once(store: Path) -> None:
    reader = open_reader(store)
    blocks = list(reader.blocks(2))
    assert [block for block, _ in blocks] == [BlockId(2, b, 256 * b, min(600, 256 * b + 256)) for b in range(3)]
    assert all(len(columns["tail"]) == block.rows for block, columns in blocks)


def test_an_absent_array_is_named_with_what_there_is(store: Path) -> None:
    with pytest.raises(IncompatibleError, match="no 'class_weight'; it holds commit, label"):
        open_reader(store).static("class_weight")


def test_info_states_shapes_sizes_and_progress(store: Path, tmp_path: Path) -> None:
    facts = describe(store)
    assert facts["arrays"]["topk_index"]["shape"] == [3, 600, 5]
    assert facts["bytes_on_disk"] == sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    assert facts["full_logits_bytes"] == 3 * 600 * 300 * 4
    write_store(tmp_path / "part", MANIFEST, blocks=4)
    assert describe(tmp_path / "part")["progress"] == {"committed": 4, "total": 9, "views": 1, "writer": None}
