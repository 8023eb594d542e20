"""Stores from a stranger: each one here asks for something format 1 never needs, and is refused before anything runs.

What refuses each attack: metadata by comparison with the manifest's own layout (`manifest_file.check_metadata`), sizes
by `layout_of` and the frame headers (`chunks`), paths by `files.read_bytes`, JSON by the strict schema (`specs`).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from numcodecs.zstd import Zstd

from kdcache.errors import ChecksumError, CorruptStoreError, HostileStoreError, KdcacheError
from kdcache.specs import StoreManifest, with_changes
from kdcache.store.info import describe
from kdcache.store.layout import layout_of
from kdcache.store.ledger import root_digest
from kdcache.store.manifest_file import write_manifest
from kdcache.store.reader import open_reader
from kdcache.store.verify import verify_store
from kdcache.store.writer import StoreWriter
from tests.store_cases import manifest_of, write_store

MANIFEST = manifest_of(rows=600)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sealed") / "store"
    write_store(place, MANIFEST)
    return place


@pytest.fixture
def store(sealed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sealed, tmp_path / "store"))


def read_all(location: Path) -> None:
    reader = open_reader(location)
    reader.view(0)
    _ = reader.labels


def refused(location: Path, kind: type[KdcacheError] = HostileStoreError) -> str:
    """Every way in refuses the store within five seconds and 64 MiB; returns the reader's message."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(kind) as caught:
        read_all(location)
    assert verify_code(location) in (3, 4)
    assert time.monotonic() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
    return caught.value.message


def verify_code(location: Path) -> int:
    try:
        return verify_store(location).exit_code
    except KdcacheError as error:
        return error.exit_code


def edit_json(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps(value))


def forge(location: Path, manifest: StoreManifest, commit_rows: int | None = None) -> None:
    """Write a manifest with a right root digest, as an attacker who knows the format can."""
    array = layout_of(manifest)["commit"]
    rows = np.zeros((commit_rows or array.shape[0], 32), dtype=np.uint8)
    body = rows.tobytes()
    (location / array.chunk_path(0, 0)).write_bytes(body + struct.pack("<I", google_crc32c.value(body)))
    write_manifest(location, with_changes(manifest, root_digest=root_digest(manifest, rows)))
    for layout in layout_of(manifest).values():
        (location / layout.name / "zarr.json").write_text(json.dumps(layout.metadata()))


@pytest.mark.parametrize("codec", ["pickle", "numcodecs.pickle", "vlen-utf8", "json2", "sharding_indexed", "gzip"])
def test_codecs_outside_the_list(store: Path, codec: str) -> None:
    edit_json(store / "tail" / "zarr.json", codecs=[{"name": codec, "configuration": {}}])
    assert "codecs" in refused(store)


@pytest.mark.parametrize("dtype", ["object", "|O", "string", "variable_length_bytes", "r128", "float64"])
def test_types_outside_the_list(store: Path, dtype: str) -> None:
    edit_json(store / "topk_index" / "zarr.json", data_type=dtype)
    assert "data_type" in refused(store)


def test_zarr_2_metadata_is_refused(store: Path) -> None:
    (store / "zarr.json").unlink()
    (store / ".zgroup").write_text('{"zarr_format": 2}')
    (store / "tail" / ".zarray").write_text('{"zarr_format": 2, "dtype": "|O", "filters": [{"id": "pickle"}]}')
    assert "v2" in refused(store)
    edit_json(store / "tail" / "zarr.json", zarr_format=2)
    shutil.copy(store / ".zgroup", store / "zarr.json")
    assert "Zarr 3 only" in refused(store)


@pytest.mark.parametrize("name", ["zarr.json", "tail/zarr.json", "tail/c/0/0/0", "tail", "tail/c/0", "commit/c/0/0"])
@pytest.mark.parametrize("target", ["outside", "inside", "nowhere"])
def test_links_inside_the_store(store: Path, tmp_path: Path, name: str, target: str) -> None:
    path = store / name
    outside = tmp_path / "outside"
    if path.is_dir():
        shutil.copytree(path, outside)
        shutil.rmtree(path)
    else:
        shutil.copy(path, outside)
        path.unlink()
    if target == "inside":
        shutil.move(outside, store / "copy")
        outside = store / "copy"
    path.symlink_to(outside if target != "nowhere" else tmp_path / "gone")
    refused(store, CorruptStoreError)


def test_a_named_pipe_does_not_hang_the_reader(store: Path) -> None:
    path = store / "tail" / "c" / "0" / "1" / "0"
    path.unlink()
    os.mkfifo(path)
    refused(store, CorruptStoreError)


def with_dataset(manifest: StoreManifest, **changes: Any) -> StoreManifest:
    return with_changes(manifest, dataset=replace(manifest.dataset, **changes), complete=True)


def test_a_terabyte_of_rows_in_a_kilobyte_of_chunks(store: Path) -> None:
    huge = with_changes(with_dataset(MANIFEST, num_rows=2**33), block_rows=65_536)
    forge(store, huge, commit_rows=1)  # a ledger that is too short for its own shape
    assert "commit" in refused(store, CorruptStoreError)
    forge(store, huge)  # 4 MB of ledger, and still no chunks
    assert "missing or empty" in refused(store, CorruptStoreError)


@pytest.mark.parametrize("rows", [2**40, 2**50, 2**62])
def test_more_rows_than_any_ledger_could_cover(store: Path, rows: int) -> None:
    edited = with_dataset(MANIFEST, num_rows=rows)
    write_manifest(store, edited)
    refused(store, CorruptStoreError)


def test_a_chunk_larger_than_any_codec_takes(store: Path) -> None:
    edited = with_changes(
        with_dataset(MANIFEST, num_classes=2**31), codec=replace(MANIFEST.codec, topk=2**30), block_rows=65_536
    )
    write_manifest(store, edited)
    assert "bytes; expected at most" in refused(store)


def test_a_zstd_bomb_with_a_right_checksum(store: Path) -> None:
    bomb = Zstd(level=19).encode(bytes(2**28))
    path = store / "label_log_prob" / "c" / "0" / "0"
    path.write_bytes(bomb + struct.pack("<I", google_crc32c.value(bomb)))
    refused(store, CorruptStoreError)


def test_a_chunk_file_larger_than_it_can_be(store: Path) -> None:
    with open(store / "label" / "c" / "0", "wb") as file:
        file.truncate(2**40)  # a hole: a terabyte that takes no space
    assert "expected at most" in refused(store)


def test_a_root_file_larger_than_it_can_be(store: Path) -> None:
    with open(store / "zarr.json", "wb") as file:
        file.truncate(2**33)
    refused(store)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 50_000,
        "NaN",
        '{"zarr_format": 3, "node_type": "group", "attributes": []}',
        "null",
        "\xff",
    ],
)
def test_json_that_is_no_manifest(store: Path, text: str) -> None:
    (store / "zarr.json").write_bytes(text.encode("latin-1"))
    refused(store, KdcacheError)


@pytest.mark.parametrize("where", ["root", "attributes", "manifest"])
def test_keys_nobody_knows(store: Path, where: str) -> None:
    root = json.loads((store / "zarr.json").read_text())
    target = {"root": root, "attributes": root["attributes"], "manifest": root["attributes"]["kdcache"]}[where]
    target["__reduce__"] = ["os.system", "true"]
    (store / "zarr.json").write_text(json.dumps(root))
    refused(store, CorruptStoreError)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "features/../../x", "features/", "/etc", "class_weight\x00", "zarr"]
)
def test_fields_that_would_leave_the_store(store: Path, name: str) -> None:
    codec = replace(MANIFEST.codec, fields=(name,))
    write_manifest(store, with_changes(MANIFEST, codec=codec, static_shapes={name: [4]}, complete=True))
    assert "not part of format 1" in refused(store, CorruptStoreError)


@pytest.mark.parametrize("shape", [[0], [-1], [2**40, 2**40], ["8"], [8.0], [True], {}, None, [1, 2, 3, 4, 5]])
def test_shapes_that_are_none(store: Path, shape: Any) -> None:
    codec = replace(MANIFEST.codec, fields=("class_weight",))
    write_manifest(store, with_changes(MANIFEST, codec=codec, static_shapes={"class_weight": shape}, complete=True))
    refused(store, CorruptStoreError)


def test_a_forged_ledger_does_not_make_values_valid(store: Path) -> None:
    """Whoever forges everything has made another, self-consistent store; deep verification still checks its values."""
    manifest = open_reader(store).manifest
    block = layout_of(manifest)["topk_index"]
    assert block.fill_value == 65535
    forge(store, with_changes(manifest, complete=True))
    with pytest.raises(ChecksumError):
        read_all(store)


def test_info_of_a_hostile_store_stays_in_bounds(store: Path) -> None:
    huge = with_changes(with_dataset(MANIFEST, num_rows=2**33), block_rows=65_536)
    write_manifest(store, huge)
    started = time.monotonic()
    assert describe(store)["rows"] == 2**33
    assert time.monotonic() - started < 1


def test_a_writer_leaves_a_hostile_place_alone(store: Path) -> None:
    edit_json(store / "zarr.json", zarr_format=2)
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    with pytest.raises(HostileStoreError):
        StoreWriter.open(store, MANIFEST)
    assert before == {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
