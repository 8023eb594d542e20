"""A grid that was edited and is run again in the same folder trains what changed, nothing else, and loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdcache.parallel import GridResult, run_cells
from pipelines.partial_kd import recipe as partial_kd
from pipelines.partial_kd.run import run as run_partial_kd
from pipelines.spot_adaptive import recipe as spot_adaptive
from pipelines.teacher_sweep import sweep as teacher_sweep
from pipelines.teacher_sweep.run import run as run_sweep
from tests.integration.test_teacher_sweep import SMALLEST

PARTIAL_KD = """
dataset = "digit-pairs"
[smoke]
seeds = [0]
methods = ["ce", "kd"]
split = "train[:200]"
topk = 5
dump = { allow_weak_teacher = true }
teacher = { model = "mlp-8", split = "train[:400]", eval_split = "val", epochs = 1, batch_size = 100, lr = 0.1 }
student = { model = "mlp-8", eval_split = "test", epochs = 1, batch_size = 50 }
tuning = { eval_split = "val", seed = 9, values = { ce = { lr = [0.1] }, kd = { lr = [0.1] } } }
"""
SPOTS = """
[smoke]
rows = 100
tflops = 0.02
dataset = "digit-pairs"
split = "train[:100]"
teacher = { model = "resnet8", split = "train[:100]", eval_split = "val[:50]", epochs = 1, batch_size = 50, lr = 0.1 }
dump = { views = 1, allow_weak_teacher = true, features = "penultimate", feature_dtype = "float32" }
student = { model = "resnet8x0.5", epochs = 1, batch_size = 50, lr = 0.05, eval_split = "test[:50]" }
baselines = ["ce"]
methods = ["rkd"]
controls = ["adaptive"]
seeds = [0]
single = { methods = [], controls = [] }
live = { methods = [], controls = [], seeds = [] }
"""


def _edit(grid: Path, *changes: tuple[str, str]) -> None:
    text = grid.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    grid.write_text(text)


def _done(found: GridResult) -> dict[str, Any]:
    assert not found.failed, found.summary()
    return {name: dict(result) for name, result in found.results.items()}


def test_partial_kd_trains_what_an_edited_grid_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_kd, "HERE", tmp_path)
    grid = tmp_path / "mine.toml"
    grid.write_text(PARTIAL_KD)

    def run() -> tuple[dict[str, Any], tuple[str, ...]]:
        recipe = partial_kd.load_recipe("mine", "smoke", data_root=None, folder=tmp_path / "runs")
        found = run_partial_kd(recipe)
        return _done(found), found.skipped

    first, _ = run()
    folder = tmp_path / "runs" / "mine" / "smoke"
    _edit(grid, ("lr = [0.1] } }", "lr = [0.3, 0.1] } }"), ("ce = { lr = [0.1] }", "ce = { lr = [0.3, 0.1] }"))
    second, _ = run()
    assert second["trial-ce-0"]["lr"] == 0.3
    assert second["trial-ce-1"] == {**first["trial-ce-0"], "seconds": second["trial-ce-1"]["seconds"]}
    assert json.loads((folder / "trials" / "ce-0.old-1" / "result.json").read_text())["lr"] == 0.1
    _edit(grid, ('eval_split = "test", epochs = 1', 'eval_split = "test", epochs = 2'))
    third, skipped = run()
    assert {name: third[name]["epochs"] for name in ("ce-seed0", "kd-seed0")} == {"ce-seed0": 2, "kd-seed0": 2}
    assert {"teacher-main", "store-main"} <= set(skipped), "the teacher was asked again"
    _edit(grid, ('eval_split = "val", epochs = 1', 'eval_split = "val", epochs = 2'))
    fourth, _ = run()
    assert fourth["teacher-main"]["epochs"] == 2
    assert fourth["store-main"]["root_digest"] != third["store-main"]["root_digest"]
    assert fourth["kd-seed0"]["store_root_digest"] == fourth["store-main"]["root_digest"]
    assert (folder / "stores" / "main.zarr.old-1").is_dir(), "a store that cost a teacher's time was lost"


def test_teacher_sweep_trains_what_an_edited_grid_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_sweep, "HERE", tmp_path)
    grid = tmp_path / "grid.toml"
    grid.write_text(SMALLEST)

    def run() -> dict[str, Any]:
        (sweep,) = teacher_sweep.load_sweeps("smoke", "", data_root=None, folder=tmp_path / "runs")
        return _done(run_sweep(sweep))

    first = run()
    assert len(first["teacher-b50"]["val_accuracy"]) == 1
    _edit(grid, ("epochs = [1]", "epochs = [1, 2]"), ("seeds = [0]", "seeds = [0, 1]"))
    second = run()
    assert len(second["teacher-b50"]["val_accuracy"]) == 2
    assert {"b50-e1-kd-seed1", "b50-e2-kd-seed0", "b50-e2-kd-seed1"} <= set(second)
    _edit(grid, ("epochs = 1, batch_size = 100", "epochs = 2, batch_size = 100"))
    third = run()
    assert third["b50-e1-kd-seed0"]["epochs"] == 2
    assert third["store-b50-e1"] == second["store-b50-e1"]


def test_spot_adaptive_trains_what_an_edited_grid_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spot_adaptive, "HERE", tmp_path)
    grid = tmp_path / "grid.toml"
    grid.write_text(SPOTS)

    def run() -> dict[str, Any]:
        recipe = spot_adaptive.load_recipe("smoke", data_root=None, folder=tmp_path / "runs")
        return _done(run_cells(list(recipe.cells(live=False)), folder=recipe.folder))

    first = run()
    _edit(grid, ("epochs = 1, batch_size = 50, lr = 0.05", "epochs = 2, batch_size = 50, lr = 0.05"))
    edited = spot_adaptive.load_recipe("smoke", data_root=None, folder=tmp_path / "runs")
    assert set(edited.finished()) == {"teacher", "dump"}, "students of the old grid are shown as the new one's"
    second = run()
    assert [second[name]["training"]["epochs"] for name in ("ce-seed0", "rkd-adaptive-seed0")] == [2, 2]
    assert second["dump"] == first["dump"]
    assert set(edited.finished()) == set(second)
    _edit(grid, ('eval_split = "val[:50]", epochs = 1', 'eval_split = "val[:50]", epochs = 2'))
    third = run()
    assert third["teacher"]["epochs"] == 2
    assert third["dump"]["root_digest"] != second["dump"]["root_digest"]
    assert third["rkd-adaptive-seed0"]["store_root_digest"] == third["dump"]["root_digest"]
