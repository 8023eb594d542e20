"""Faults at rest: any damage, in every kind of file, is found, named and given the right class and exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kdcache.errors import (
    CorruptStoreError,
    HostileStoreError,
    IncompatibleError,
    KdcacheError,
    NotFoundError,
    UnfinishedStoreError,
)
from kdcache.store.reader import open_reader
from kdcache.store.verify import verify_store
from kdcache.store.writer import StoreWriter
from kdcache.targets.soft import TARGET_COLUMNS
from tests.store_cases import columns_of, manifest_of, static_of, write_store

FIELDS = ("class_bias", "class_weight", "view_params")
SHAPES = {"class_weight": [300, 4], "class_bias": [300], "view_params": [6]}
MANIFEST = manifest_of(rows=1200, views=2, fields=FIELDS, shapes=SHAPES)
WITH_BLOCKS = ("label", "label_log_prob", "row_digest", "tail", "topk_index", "topk_log_prob", "view_params")


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sealed") / "store"
    write_store(place, MANIFEST)
    return place


@pytest.fixture
def store(sealed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sealed, tmp_path / "store"))


def read_everything(location: Path) -> dict[str, NDArray[Any]]:
    reader = open_reader(location)
    read = {"class_weight": reader.static("class_weight"), "label": reader.labels, "row_digest": reader.row_digests}
    for view in range(reader.manifest.num_views):
        columns = reader.view(view)
        read |= {f"{name}/{view}": getattr(columns, name) for name in (*TARGET_COLUMNS, "view_params")}
    return read


def backwards(value: Any) -> Any:
    """The same JSON with the keys of every object in the opposite order."""
    if isinstance(value, dict):
        return {name: backwards(value[name]) for name in reversed(value)}
    return [backwards(item) for item in value] if isinstance(value, list) else value


def assert_found(location: Path, kind: type[KdcacheError] = CorruptStoreError) -> str:
    """Reading raises (with a hint), verify lists it with exit code 4; returns what verify says."""
    with pytest.raises(kind) as caught:
        read_everything(location)
    assert caught.value.exit_code == 4
    assert caught.value.hint
    report = verify_store(location)
    assert report.exit_code == 4
    assert all(problem.repair for problem in report.problems)
    return "\n".join(map(str, report.problems))


def chunk(location: Path, array: str, view: int = 1, block: int = 2) -> Path:
    base = location / array / "c"
    if array in ("label", "row_digest"):
        return base / str(block)
    return base / str(view) / str(block) / ("" if array == "label_log_prob" else "0")


def every_file(location: Path) -> list[Path]:
    """One file of each kind: root, metadata, first chunk of each array, ledger."""
    files = [location / "zarr.json"]
    for folder in sorted(path for path in location.iterdir() if path.is_dir()):
        files.append(folder / "zarr.json")
        files.append(next(path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "zarr.json"))
    return files


def test_the_untouched_store_is_sound(store: Path) -> None:
    read_everything(store)
    report = verify_store(store, deep=True)
    assert report.exit_code == 0
    assert report.blocks_checked == report.blocks_total == 10
    assert not report.problems


@pytest.mark.parametrize("seed", range(6))
def test_a_flipped_bit_in_any_kind_of_file(sealed: Path, store: Path, seed: int) -> None:
    rng = np.random.Generator(np.random.Philox(key=seed))
    for path in every_file(store):
        original = path.read_bytes()
        data = bytearray(original)
        position = int(rng.integers(len(data)))
        data[position] ^= 1 << int(rng.integers(8))
        if path.name == "zarr.json" and _same_json(bytes(data), original):
            continue
        path.write_bytes(bytes(data))
        with pytest.raises(KdcacheError) as caught:
            read_everything(store)
        assert caught.value.exit_code in (3, 4), path
        code = _verify_code(store)
        assert code in (3, 4), path
        path.write_bytes(original)
    read_everything(store)


def _same_json(one: bytes, two: bytes) -> bool:
    """Whether a flip changed only white space, or a note outside the root digest (`creator`)."""
    try:
        left, right = json.loads(one), json.loads(two)
    except ValueError:
        return False
    for value in (left, right):
        if isinstance(value, dict) and isinstance(value.get("attributes"), dict):
            inner = value["attributes"].get("kdcache")
            if isinstance(inner, dict):
                inner.pop("creator", None)
    return bool(left == right)


def _verify_code(location: Path) -> int:
    try:
        return verify_store(location).exit_code
    except KdcacheError as error:
        return error.exit_code


@pytest.mark.parametrize("array", WITH_BLOCKS)
def test_a_damaged_chunk_is_named_with_array_view_block_and_rows(store: Path, array: str) -> None:
    view = 0 if array in ("label", "row_digest") else 1
    path = chunk(store, array)
    original = path.read_bytes()
    for damaged in (original[: len(original) // 2], b"", original + b"x", original[:-1] + bytes([original[-1] ^ 1])):
        path.write_bytes(damaged)
        said = assert_found(store)
        assert f"{array} view {view} block 2 rows 512..767:" in said
    path.unlink()
    assert f"{array} view {view} block 2 rows 512..767:" in assert_found(store)
    assert "missing" in assert_found(store)


@pytest.mark.parametrize("array", WITH_BLOCKS)
def test_swapped_and_duplicated_chunks_pass_crc_but_not_the_ledger(store: Path, array: str) -> None:
    one, two = chunk(store, array, block=1), chunk(store, array, block=2)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    said = assert_found(store)
    assert "block 1" in said
    assert "block 2" in said
    assert array in said
    two.write_bytes(second)
    said = assert_found(store)
    assert "block 1" in said
    assert "block 2" not in said


def test_a_stale_chunk_of_an_older_version_of_the_block_is_found(store: Path, tmp_path: Path) -> None:
    write_store(tmp_path / "older", MANIFEST, seed=9)
    shutil.copy(chunk(tmp_path / "older", "tail"), chunk(store, "tail"))
    assert "view 1 block 2" in assert_found(store)


def test_a_whole_block_of_another_store_is_found(store: Path, tmp_path: Path) -> None:
    other = manifest_of(rows=1200, views=2, fields=FIELDS, shapes=SHAPES, teacher="another")
    write_store(tmp_path / "other", other, seed=4)
    for array in WITH_BLOCKS:
        shutil.copy(chunk(tmp_path / "other", array), chunk(store, array))
    assert "view 1 block 2" in assert_found(store)


def test_ledger_rows_of_another_store_are_found(store: Path, tmp_path: Path) -> None:
    write_store(tmp_path / "other", manifest_of(rows=1200, views=2, fields=FIELDS, shapes=SHAPES, teacher="another"))
    shutil.copy(tmp_path / "other" / "commit" / "c" / "0" / "0", store / "commit" / "c" / "0" / "0")
    assert "root digest" in assert_found(store)


def test_a_store_whose_rows_were_permuted_is_found(store: Path) -> None:
    for array in WITH_BLOCKS:  # consistently, in every array of a block pair
        one, two = chunk(store, array, view=0, block=0), chunk(store, array, view=0, block=3)
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)
    said = assert_found(store)
    assert "view 0 block 0" in said
    assert "view 0 block 3" in said


@pytest.mark.parametrize("array", [*WITH_BLOCKS, "class_weight", "commit"])
def test_a_missing_array_is_found(store: Path, array: str) -> None:
    shutil.rmtree(store / array)
    assert array in assert_found(store)


def edit_root(location: Path, change: Callable[[dict[str, object]], None]) -> None:
    path = location / "zarr.json"
    root = json.loads(path.read_text())
    change(root["attributes"]["kdcache"])
    path.write_text(json.dumps(root))


def test_an_edited_manifest_is_found(store: Path) -> None:
    edit_root(store, lambda manifest: manifest.update(quality={"top1": 0.99}))
    assert "root digest" in assert_found(store)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("dataset", "num_classes", 299),
        ("dataset", "num_classes", 70_000),
        ("dataset", "num_rows", 1199),
        ("codec", "topk", 4),
        ("codec", "precision", "exact"),
        ("codec", "fields", ["class_bias", "class_weight"]),
        ("teacher", "source", "someone-else"),
    ],
)
def test_wrong_sizes_in_the_manifest_are_found(store: Path, part: str, key: str, value: object) -> None:
    def change(manifest: dict[str, object]) -> None:
        inner = manifest[part]
        assert isinstance(inner, dict)
        inner[key] = value

    edit_root(store, change)
    with pytest.raises(CorruptStoreError):
        read_everything(store)
    assert verify_store(store).exit_code == 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", [2, 1200, 6]),
        ("data_type", "float32"),
        ("fill_value", 0.0),
        ("codecs", [{"name": "bytes", "configuration": {"endian": "little"}}]),
        ("dimension_names", ["a", "b", "c"]),
        ("attributes", {"note": "x"}),
        ("zarr_format", 2),
    ],
)
def test_edited_array_metadata_is_refused(store: Path, key: str, value: object) -> None:
    path = store / "topk_log_prob" / "zarr.json"
    metadata = json.loads(path.read_text())
    metadata[key] = value
    path.write_text(json.dumps(metadata))
    assert key in assert_found(store, HostileStoreError)


def test_metadata_in_another_order_and_spacing_is_the_same_metadata(store: Path) -> None:
    before = read_everything(store)
    for path in store.glob("**/zarr.json"):
        text = path.read_text()
        path.write_text(json.dumps(backwards(json.loads(text)), indent=3))
        assert path.read_text() != text
    after = read_everything(store)
    assert before.keys() == after.keys()
    assert len(before) > 4
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name])


def test_a_newer_format_is_refused_kindly(store: Path) -> None:
    edit_root(store, lambda manifest: manifest.update(format_version=2))
    before = (store / "zarr.json").read_bytes()

    def writing() -> None:
        StoreWriter.open(store, MANIFEST, static=static_of(MANIFEST))

    for attempt in (lambda: open_reader(store), lambda: verify_store(store), writing):
        with pytest.raises(IncompatibleError, match="store format 2") as caught:
            attempt()
        assert caught.value.exit_code == 3
    assert (store / "zarr.json").read_bytes() == before


def test_a_file_that_does_not_belong_is_listed(store: Path) -> None:
    shutil.copy(chunk(store, "tail"), store / "tail" / "c" / "1" / "77")
    assert "tail/c/1/77" in "\n".join(map(str, verify_store(store).problems))


def test_places_that_are_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(NotFoundError, match="no such store"):
        open_reader(tmp_path / "nothing")
    with pytest.raises(NotFoundError, match="found a file"):
        open_reader(tmp_path / "file")
    with pytest.raises(IncompatibleError, match="folder without"):
        open_reader(tmp_path / "folder")
    (tmp_path / "folder" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(IncompatibleError, match="not a kdcache store"):
        open_reader(tmp_path / "folder")


def test_an_unfinished_store_says_so_and_how_to_continue(tmp_path: Path) -> None:
    write_store(tmp_path / "s", MANIFEST, blocks=3)
    with pytest.raises(UnfinishedStoreError, match="3 of 10 blocks") as caught:
        open_reader(tmp_path / "s")
    assert caught.value.exit_code == 3
    assert "dump-teacher" in caught.value.hint
    report = verify_store(tmp_path / "s")
    assert (report.exit_code, report.blocks_checked) == (3, 3)
    reader = open_reader(tmp_path / "s", allow_unfinished=True)
    with pytest.raises(UnfinishedStoreError, match="2 blocks of view 0"):
        reader.view(0)


def test_deep_verification_finds_values_that_were_written_wrong(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path / "s", manifest_of(rows=300)) as writer:
        for block in writer.pending:
            columns = columns_of(writer.manifest, block)
            columns["tail"][5, 0] = -0.01  # a mass of 0.99 where the head has most of it
            writer.write_block(block, columns)
        writer.seal()
    assert verify_store(tmp_path / "s").exit_code == 0
    report = verify_store(tmp_path / "s", deep=True)
    assert report.exit_code == 4
    assert "probabilities sum" in str(report.problems[0])
