"""Every recipe runs at its smoke scale, as a user types it, and continues where it stopped."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import kdcache
from kdcache.store.verify import verify_store
from pipelines.partial_kd.synthetic_data import CLASSES, GROUPS, class_directions, write_data
from pipelines.teacher_sweep.metrics import rank_correlation, similarity_metrics
from pipelines.teacher_sweep.permuted import write_permuted
from tests.small_store import NUM_CLASSES, small_source, write_small_store

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"


def _run(module: str, *words: str) -> str:
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_synthetic_recipe_runs_and_skips_what_is_done(tmp_path: Path) -> None:
    words = ("pipelines.partial_kd.synthetic", "--scale", "smoke", "--folder", str(tmp_path))
    first = _run(*words)
    rows = json.loads((tmp_path / "smoke" / "rows.json").read_text())
    assert {(row["tau2"], row["method"]) for row in rows} == {
        (tau2, method) for tau2 in (0.0, 0.8) for method in ("ce", "kd-topk", "kd-pt", "kd-sim")
    }
    assert all(0 < score < 1 for row in rows for score in row["accuracy"])
    weights = sorted(tmp_path.rglob("last.safetensors"))
    before = [path.stat().st_mtime_ns for path in weights]
    again = _run(*words)
    assert [path.stat().st_mtime_ns for path in weights] == before, "a finished student was trained again"
    assert again.split("teacher asked")[0] == first.split("teacher asked")[0]


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
    for name in ("a", "b"):
        write_data(tmp_path / name, 0.4, **arguments)  # type: ignore[arg-type]
    write_data(tmp_path / "c", 0.4, **{**arguments, "seed": 1})  # type: ignore[arg-type]
    one, two, other = (np.load(tmp_path / name / "data.npz") for name in "abc")
    assert all(np.array_equal(one[key], two[key]) for key in one)
    assert not np.array_equal(one["train_inputs"], other["train_inputs"])


def test_teacher_sweep_runs(tmp_path: Path) -> None:
    told = _run("pipelines.teacher_sweep.run", "--scale", "smoke", "--folder", str(tmp_path))
    document = json.loads((tmp_path / "smoke" / "digit-pairs" / "rows.json").read_text())
    rows = {row["name"]: row for row in document["teachers"]}
    assert set(rows) == {"b32-e1", "b32-e4", "b256-e1", "b256-e4"}
    assert rows["b32-e4"]["val_accuracy"] > rows["b32-e1"]["val_accuracy"]
    assert rows["b32-e4"]["effective_classes"] < rows["b32-e1"]["effective_classes"] <= 100
    for arms in document["tests"].values():
        assert statistics.mean(arms["true"]) > statistics.mean(arms["permuted"]), "permuted targets taught as much"
    assert "Selector: b32-e4" in told


def test_metrics_agree_with_the_dense_definition(tmp_path: Path) -> None:
    source = small_source(300)
    small = write_small_store(tmp_path / "s", source, topk=NUM_CLASSES, precision="exact")
    found = similarity_metrics(kdcache.open_store(small.path), temperature=2.0)
    prob = (small.logits / 2.0).softmax(dim=1).double().numpy()
    entropy = -(prob * np.log(prob)).sum(axis=1)
    top = np.sort(prob, axis=1)[:, ::-1]
    other = prob.copy()
    other[np.arange(300), source.labels] = 0
    other /= other.sum(axis=1, keepdims=True)
    means = np.stack([other[source.labels == c].mean(axis=0) for c in range(NUM_CLASSES)])
    weight = np.bincount(source.labels) / 300
    within = (weight * [other[source.labels == c].var(axis=0).sum() for c in range(NUM_CLASSES)]).sum()
    between = (weight * ((means - weight @ means) ** 2).sum(axis=1)).sum()
    assert found["effective_classes"] == pytest.approx(np.exp(entropy).mean(), rel=2e-3)
    assert found["doubt"] == pytest.approx((1 - top[:, 0]).mean(), rel=2e-3)
    assert found["top2_gap"] == pytest.approx((top[:, 0] - top[:, 1]).mean(), rel=2e-3, abs=1e-4)
    assert found["between_within"] == pytest.approx(between / within, rel=1e-2)


def test_a_permuted_store_keeps_the_best_class_and_every_confidence(tmp_path: Path) -> None:
    source = small_source(300)
    small = write_small_store(tmp_path / "s", source, topk=NUM_CLASSES)
    write_permuted(small.path, tmp_path / "p", seed=0)
    rows = torch.arange(300)
    true, control = (kdcache.open_store(tmp_path / name).targets(rows) for name in "sp")
    assert torch.equal(true.log_prob, control.log_prob)
    assert torch.equal(true.index[:, 0], control.index[:, 0])
    moved = (true.index[:, 1:] != control.index[:, 1:]).float().mean()
    assert 0.6 < float(moved) < 1.0
    assert not verify_store(tmp_path / "p", deep=True).problems
    kept = control.log_prob[control.index == control.label[:, None]]
    assert torch.equal(kept, control.label_log_prob)


def test_rank_correlation_knows_ties_and_order() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 1, 2, 2], [1, 1, 2, 2]) == pytest.approx(1.0)
    assert np.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))
