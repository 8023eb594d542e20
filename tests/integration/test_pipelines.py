"""Every recipe runs at its smoke scale, as a user types it, and continues where it stopped."""

from __future__ import annotations

import importlib
import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdcache.parallel import Cell
from pipelines.partial_kd.cells import teacher_cells
from pipelines.partial_kd.recipe import load_recipe
from pipelines.partial_kd.results import Row
from pipelines.partial_kd.synthetic_data import CLASSES, GROUPS, class_directions, write_data
from pipelines.partial_kd.synthetic_results import gains_over
from pipelines.spot_adaptive.recipe import load_recipe as load_spots
from pipelines.teacher_sweep.cells import teacher_cells as sweep_cells
from pipelines.teacher_sweep.sweep import load_sweeps

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"


def _run(module: str, *words: str) -> str:
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


COMMANDS = sorted(
    path for path in (ROOT / "pipelines").rglob("*.py") if 'if __name__ == "__main__"' in path.read_text()
)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.stem))
def test_every_command_says_what_it_wants(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_cells_are_the_same_however_the_folders_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another working folder, the same data: nothing is run again."""
    monkeypatch.chdir(tmp_path)

    def cells(root: Path, folder: Path) -> list[Cell]:
        partial = load_recipe("cifar100", "cpu", data_root=root, folder=folder)
        (sweep,) = load_sweeps("cpu", "cifar100", data_root=root, folder=folder)
        spots = load_spots("cpu", data_root=root, folder=folder, write_data=False)
        return [*teacher_cells(partial, partial.teachers), *sweep_cells(sweep), *spots.cells(live=True)]

    assert cells(Path("data"), Path("runs")) == cells(tmp_path / "data", tmp_path / "x" / ".." / "runs")


def _call(module: str, *words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """A recipe's command line in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", [module, *words])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main()
    return int(ended.value.code or 0)


PARTIAL_KD, SWEEP, SPOTS = (f"pipelines.{name}.run" for name in ("partial_kd", "teacher_sweep", "spot_adaptive"))


@pytest.mark.parametrize(
    ("module", "words", "command"),
    [
        (PARTIAL_KD, ["--data", "cifar100"], "prepare_torchvision.py cifar100 --data-root"),
        (PARTIAL_KD, ["--data", "imagenet"], "prepare_tiny_imagenet.py"),
        (PARTIAL_KD, ["--data", "ptb"], "prepare_ptb.py"),
        (SWEEP, ["--data", "fashion-mnist"], "prepare_torchvision.py fashion-mnist --data-root"),
        (SWEEP, ["--data", "tiny-imagenet"], "prepare_tiny_imagenet.py"),
        (SPOTS, [], "prepare_torchvision.py cifar100 --data-root"),
    ],
)
def test_missing_data_end_in_the_command_that_gets_them(
    module: str,
    words: list[str],
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = ("--data-root", str(tmp_path / "none"), "--folder", str(tmp_path / "runs"))
    assert _call(module, "--scale", "cpu", *words, *places, monkeypatch=monkeypatch) != 0
    out, err = capsys.readouterr()
    assert "it is not there" in err
    assert f"{command}" in err
    assert str(tmp_path / "none") in err
    assert "Traceback" not in err
    assert out == "", "tables of nothing"
    assert len(err.splitlines()) < 25, "the reason is lost among what was not run"


@pytest.mark.parametrize("scale", ["cpu", "paper"])
@pytest.mark.parametrize(
    ("module", "words"),
    [
        *((PARTIAL_KD, ["--data", data]) for data in ("cifar100", "imagenet", "ptb")),
        ("pipelines.partial_kd.synthetic", []),
        (SWEEP, []),
        (SPOTS, []),
    ],
)
def test_a_dry_run_needs_no_data_and_makes_nothing(
    module: str,
    words: list[str],
    scale: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = [] if module.endswith("synthetic") else ["--data-root", str(tmp_path / "none")]
    places = (*root, "--folder", str(tmp_path / "runs"))
    assert _call(module, "--scale", scale, *words, *places, "--dry-run", monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "TFLOP/s assumed" in shown
    assert "GB" in shown
    assert not any(tmp_path.iterdir())


def test_synthetic_recipe_runs_and_skips_what_is_done(tmp_path: Path) -> None:
    words = (
        "pipelines.partial_kd.synthetic",
        "--scale",
        "smoke",
        "--folder",
        str(tmp_path),
        "--results",
        str(tmp_path),
    )
    first = _run(*words)
    for tau2 in ("0", "0.8"):
        place = tmp_path / "synthetic" / "smoke" / f"tau2-{tau2}"
        results = [json.loads(path.read_text()) for path in place.glob("students/*/result.json")]
        assert {result["method"] for result in results} == {"ce", "kd-topk", "kd-pt", "kd-sim"}
        assert len({result["store_root_digest"] for result in results}) == 1
    assert (tmp_path / "partial_kd-synthetic.svg").read_text().startswith("<svg")
    weights = sorted(tmp_path.rglob("last.safetensors"))
    before = [path.stat().st_mtime_ns for path in weights]
    assert _run(*words) == first
    assert [path.stat().st_mtime_ns for path in weights] == before, "a finished student was trained again"


def test_gains_are_paired_by_seed(tmp_path: Path) -> None:
    recipe = load_recipe("synthetic", "smoke", data_root=None, folder=tmp_path)
    arms = {arm.name: replace(arm, seeds=(0, 1, 2)) for arm in recipe.arms}
    found = {"kd-pt": {0: 0.5, 1: 0.7, 2: 0.6}, "ce": {0: 0.4, 2: 0.2}}
    rows = {
        name: Row(arm=arms[name], tuned={}, figures={seed: {"accuracy": x} for seed, x in scores.items()}, gains={})
        for name, scores in found.items()
    }
    assert gains_over(rows, "kd-pt", "ce") == pytest.approx([10.0, 40.0])
    assert gains_over(rows, "kd-pt", "ls") == []


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"Penn Treebank is not at {SHARED}/ptb")
def test_ptb_recipe_trains_every_method_from_one_store_in_perplexity(tmp_path: Path) -> None:
    words = ("pipelines.partial_kd.run", "--data", "ptb", "--scale", "smoke", "--data-root", str(SHARED))
    shown = _run(*words, "--folder", str(tmp_path))
    assert "perplexity" in shown
    results = [json.loads(path.read_text()) for path in tmp_path.rglob("students/*/result.json")]
    assert {result["method"] for result in results} == {"ce", "kd", "kd-topk", "kd-pt", "kd-sim"}
    assert len({result["store_root_digest"] for result in results}) == 1
    assert all(1 < result["perplexity"] < 10_000 for result in results)


@pytest.mark.parametrize("tau2", [0.0, 0.4, 0.8])
def test_classes_of_a_group_have_the_stated_cosine(tau2: float) -> None:
    directions = class_directions(tau2, np.random.default_rng(0))
    cosine = directions @ directions.T
    group = np.arange(CLASSES) % GROUPS
    same = (group[:, None] == group) & ~np.eye(CLASSES, dtype=bool)
    assert abs(cosine[same].mean() - tau2) < 0.02
    assert abs(cosine[group[:, None] != group].mean()) < 0.02


def test_synthetic_data_is_a_function_of_its_arguments(tmp_path: Path) -> None:
    arguments = {"sigma": 5.0, "folds": 1, "seed": 0, "share": 0.02}
    seeds = {"a": 0, "b": 0, "c": 1}
    files = [write_data(tmp_path / name, 0.4, **{**arguments, "seed": seed}) for name, seed in seeds.items()]  # type: ignore[arg-type]
    one, two, other = map(np.load, files)
    assert all(np.array_equal(one[key], two[key]) for key in one)
    assert not np.array_equal(one["train_inputs"], other["train_inputs"])
    more = write_data(tmp_path / "a", 0.4, **{**arguments, "share": 0.03})  # type: ignore[arg-type]
    assert len(np.load(more)["train_labels"]) > len(one["train_labels"]), "an edited share found the old data"
