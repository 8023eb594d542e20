"""The golden stores of format 1 (3 and 4 tail numbers) are opened on every run, by us and by others' readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from kdcache.store.layout import layout_of
from kdcache.store.reader import open_reader
from kdcache.store.verify import verify_store
from tests.golden.make_golden import golden_manifest
from tests.golden.second_reader import read_store
from tests.store_cases import store_bytes, write_store

GOLDEN = {3: Path(__file__).with_name("format-1"), 4: Path(__file__).with_name("format-1-tail-4")}
ROOT_DIGEST = {
    3: "6a3e3d37d71c61b1847a5d3a759c44e737b10a320a60aa8db1f2673462c08e89",
    4: "008dda1a7eaef5a54692190ae2e4c806ca4a4dc0640e5a55610f527a83b52d70",
}
GOLDEN_TAIL = [-1.234375, -9.875, 7.75, 1.625]
GOLDEN_INDEX = [179, 10, 181, 247, 129]
GOLDEN_LOG_PROB = [-0.6640625, -2.1875, -3.5, -3.5625, -3.65625]
GOLDEN_LABELS = [190, 211, 181, 227]
SECOND_READER = Path(__file__).with_name("second_reader.py")


def ours(location: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every array of a store as our reader gives it."""
    reader = open_reader(location)
    views = []
    for view in range(reader.manifest.num_views):
        found = reader.view(view)
        columns = {name: getattr(found, name) for name in ("topk_index", "topk_log_prob", "tail", "label_log_prob")}
        views.append({**columns, "view_params": found.view_params})
    arrays = {name: np.stack([columns[name] for columns in views]) for name in views[0]}
    arrays |= {name: reader.row_array(name) for name in ("label", "row_digest")}
    return arrays | {name: reader.static(name) for name in ("class_bias", "class_weight")}


@pytest.mark.parametrize("numbers", GOLDEN)
def test_the_golden_store_reads_as_it_did(numbers: int) -> None:
    reader = open_reader(GOLDEN[numbers])
    assert reader.manifest.root_digest == ROOT_DIGEST[numbers]
    assert verify_store(GOLDEN[numbers], deep=True).exit_code == 0
    view = reader.view(1)
    assert view.topk_index[299].tolist() == GOLDEN_INDEX
    assert view.topk_log_prob[299].tolist() == GOLDEN_LOG_PROB
    assert view.tail[299].tolist() == GOLDEN_TAIL[:numbers]
    assert reader.labels[:4].tolist() == GOLDEN_LABELS


@pytest.mark.parametrize("numbers", GOLDEN)
def test_a_reader_written_from_the_text_agrees(numbers: int) -> None:
    assert len(SECOND_READER.read_text().splitlines()) < 80
    assert "kdcache import" not in SECOND_READER.read_text()
    manifest, theirs = read_store(GOLDEN[numbers])
    assert manifest["root_digest"] == ROOT_DIGEST[numbers]
    found = ours(GOLDEN[numbers])
    assert set(found) == set(theirs)
    for name, values in found.items():
        assert values.dtype == theirs[name].dtype
        assert values.tobytes() == theirs[name].tobytes(), name


def test_the_second_reader_notices_damage(tmp_path: Path) -> None:
    write_store(tmp_path / "s", golden_manifest(), seed=1)
    one, two = (tmp_path / "s" / "tail" / "c" / str(view) / "0" / "0" for view in (0, 1))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    with pytest.raises(AssertionError):
        read_store(tmp_path / "s")


@pytest.mark.parametrize("numbers", GOLDEN)
def test_today_the_same_request_gives_the_same_store(tmp_path: Path, numbers: int) -> None:
    """Same files, same metadata, same numbers; the last bit of a logarithm may differ on another machine."""
    write_store(tmp_path / "s", golden_manifest(numbers))
    assert set(store_bytes(tmp_path / "s")) == set(store_bytes(GOLDEN[numbers]))
    for path in GOLDEN[numbers].glob("*/zarr.json"):
        assert path.read_bytes() == (tmp_path / "s" / path.relative_to(GOLDEN[numbers])).read_bytes()
    for name, values in ours(tmp_path / "s").items():
        np.testing.assert_allclose(values.astype(np.float64), ours(GOLDEN[numbers])[name].astype(np.float64), rtol=0.02)


@pytest.mark.parametrize("numbers", GOLDEN)
def test_tensorstore_reads_the_same_numbers(numbers: int) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    for name, values in ours(GOLDEN[numbers]).items():
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(GOLDEN[numbers] / name)}}
        theirs = tensorstore.open(spec, read=True).result().read().result()
        assert np.asarray(theirs).tobytes() == values.tobytes(), name


@pytest.mark.parametrize("numbers", GOLDEN)
def test_zarrs_reads_the_same_numbers(numbers: int) -> None:
    pytest.importorskip("zarrs")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        group = zarr.open_group(str(GOLDEN[numbers]), mode="r")
        for name, values in ours(GOLDEN[numbers]).items():
            assert np.asarray(group[name][...]).tobytes() == values.tobytes(), name


@pytest.mark.parametrize("numbers", GOLDEN)
def test_the_metadata_on_disk_is_the_layout(numbers: int) -> None:
    layout = layout_of(open_reader(GOLDEN[numbers]).manifest)
    group = zarr.open_group(str(GOLDEN[numbers]), mode="r")
    assert sorted(name for name, _ in group.arrays()) == sorted(layout)
    for name, array in layout.items():
        assert group[name].shape == array.shape
        assert group[name].dtype == array.dtype
        assert group[name].chunks == array.chunk_shape
