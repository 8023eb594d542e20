"""`dump-teacher --dry-run` against the dump itself: bytes within a tenth, files and requests to the last one.

The data sets differ in what makes bytes: classes, order of the rows, views, features, words, size of the blocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdcache.dump import dump_teacher
from kdcache.dump_estimate import PROBE_ROWS, estimate_dump, rows_to_measure
from kdcache.dump_plan import DumpConfig
from tests.remote_servers import web_server
from tests.store_cases import bytes_and_files, manifest_of
from tests.token_world import make_token_world

SMALL: dict[str, Any] = {"teacher": "mlp-16", "init_seed": 0, "allow_weak_teacher": True, "batch_size": 512}


def npz(folder: Path, rows: int, classes: int, *, in_order: bool = False) -> Path:
    """Images (8, 8, 3) of noise around their class's pattern; labels in order, as image folders have them, or mixed."""
    rng = np.random.default_rng(rows)
    labels = rng.integers(classes, size=rows)
    labels = np.sort(labels) if in_order else labels
    pattern = rng.integers(0, 200, size=(classes, 8, 8, 3))
    images = (pattern[labels] + rng.integers(0, 56, size=(rows, 8, 8, 3))).astype(np.uint8)
    path = folder / f"{rows}-{classes}-{in_order}.npz"
    np.savez(path, train_images=images, train_labels=labels)
    return path


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sample": ({}, {"dataset": "digit-pairs"}),
    "few rows": ({"rows": 70, "classes": 5}, {}),
    "short last block": ({"rows": 5000, "classes": 300}, {"topk": 20, "precision": "compact"}),
    "in order": ({"rows": 20_000, "classes": 100, "in_order": True}, {"precision": "exact"}),
    "views": ({"rows": 3000, "classes": 40}, {"views": 3, "augment": "cifar"}),
    "features and draws": ({"rows": 3000, "classes": 40}, {"features": "penultimate", "samples": 8}),
    "large blocks": ({"rows": 70_000, "classes": 20}, {"topk": "all"}),
    "words": ({}, {"dataset": "tokens", "topk": 8, "context": 16}),
}


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_within_a_tenth_and_files_exact(name: str, tmp_path: Path) -> None:
    data, settings = CASES[name]
    if data:
        settings = {**SMALL, "dataset": "npz", "data_root": npz(tmp_path, **data), **settings}
    if settings["dataset"] == "tokens":
        root = make_token_world(tmp_path, masked=True)
        settings = {
            **settings,
            "data_root": root,
            "teacher": f"{tmp_path}/teachers.py:sums",
            "allow_weak_teacher": True,
        }
    config = DumpConfig(**{**settings, "out": str(tmp_path / "store.zarr")})
    estimate = estimate_dump(config)
    assert not (tmp_path / "store.zarr").exists()
    done = dump_teacher(config)
    assert list(done.stages) == ["prepare", "forward", "seal"]
    assert sum(done.stages.values()) == pytest.approx(done.seconds)
    assert done.teacher_seconds is not None
    assert 0 < done.teacher_seconds < done.stages["forward"]
    found, files = bytes_and_files(tmp_path / "store.zarr")
    assert estimate.bytes == pytest.approx(found, rel=0.10)
    assert estimate.files == files
    again = estimate_dump(config)
    assert again.covered
    assert (again.bytes, again.files) == (found, files)


@pytest.mark.parametrize("rows", [1, 100, 2048, 2049, 5000, 50_000, 1_281_167])
def test_measured_rows_are_rows_of_the_store_once_each(rows: int) -> None:
    chosen = rows_to_measure(manifest_of(rows=rows))
    assert len(np.unique(chosen)) == len(chosen)
    assert chosen[0] >= 0
    assert chosen[-1] < rows
    assert min(rows, PROBE_ROWS) * 0.9 <= len(chosen) <= PROBE_ROWS


def test_a_store_on_a_web_server_that_covers_the_request_is_answered_with_its_expected_size(tmp_path: Path) -> None:
    """A web server lists no files, so what they take is not known to the byte."""
    pytest.importorskip("obstore", reason="the extra s3 is not installed")
    data: dict[str, Any] = {**SMALL, "dataset": "npz", "data_root": npz(tmp_path, 600, 10)}
    dump_teacher(DumpConfig(**data, out=str(tmp_path / "store.zarr")))
    with web_server(tmp_path) as url:
        found = estimate_dump(DumpConfig(**data, out=f"{url}/store.zarr"))
    assert found.covered
    assert found.bytes == pytest.approx(bytes_and_files(tmp_path / "store.zarr")[0], rel=0.5)  # of an untrained teacher
