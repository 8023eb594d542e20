"""The recipe of the teacher's sweet spot: its smoke scale as a user types it, and the laws its numbers rest on."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import kdcache
from kdcache.datasets.cards import open_dataset
from kdcache.store.verify import verify_store
from pipelines.teacher_sweep import sweep as sweeps
from pipelines.teacher_sweep.cost import cost_of
from pipelines.teacher_sweep.inference import half_width, permutation_p, pooled_sd, rank_correlation, t_975
from pipelines.teacher_sweep.metrics import label_doubt, similarity_metrics
from pipelines.teacher_sweep.permuted import write_permuted
from pipelines.teacher_sweep.report import gather, report, verdict
from pipelines.teacher_sweep.run import needed, run
from pipelines.teacher_sweep.selector import Row, by_role, select, under_test
from pipelines.teacher_sweep.shrink import held_out, write_small
from pipelines.teacher_sweep.sweep import Teacher, load_sweeps
from tests.small_store import NUM_CLASSES, small_source, write_small_store

ROOT = Path(__file__).resolve().parents[2]
SMALLEST = """
[smoke.digit-pairs]
rows = "train[:300]"
val = "val"
test = "test"
teacher = { model = "mlp-8", lr = 0.1 }
batch_sizes = [50]
epochs = [1]
student = { model = "mlp-8", epochs = 1, batch_size = 100, lr = 0.2 }
temperature = 4.0
seeds = [0]
tested = ["selected"]
"""


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.teacher_sweep.run", "--scale", "smoke", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def _row(name: str, *, val: float, structure: float) -> Row:
    batch_size, epochs = (int(part[1:]) for part in name.split("-"))
    return Row(
        teacher=Teacher(batch_size=batch_size, epochs=epochs),
        val_accuracy=val,
        train_accuracy=1.0,
        label_doubt=0.1,
        metrics={"between_within": structure},
        plain={},
    )


def test_smoke_scale_runs_and_continues(tmp_path: Path) -> None:
    words = ("--folder", str(tmp_path / "runs"), "--results", str(tmp_path / "results"))
    first = _run(*words, "--workers", "2")
    document = json.loads((tmp_path / "results" / "teacher_sweep-digit-pairs.json").read_text())
    rows = {f"b{row['teacher']['batch_size']}-e{row['teacher']['epochs']}": row for row in document["rows"]}
    assert set(rows) == {"b32-e1", "b32-e4", "b256-e1", "b256-e4"}
    assert rows["b32-e4"]["val_accuracy"] > rows["b32-e1"]["val_accuracy"]
    at_t = {name: row["metrics"]["effective_classes"] for name, row in rows.items()}
    assert at_t["b32-e4"] < at_t["b32-e1"] <= 100
    for arms in document["tests"].values():
        assert statistics.mean(arms["true"]) > statistics.mean(arms["permuted"]), "permuted targets taught as much"
    assert "| selected | b32-e4 |" in first.stdout
    pictures = (tmp_path / "results" / "teacher_sweep-digit-pairs.svg").read_text()
    assert all(name in pictures for name in ("student, test %", "between_within", "teacher, validation %"))
    weights = sorted(tmp_path.rglob("last.safetensors"))
    before = [path.stat().st_mtime_ns for path in weights]
    assert len(list((tmp_path / "runs").rglob("cells/*.log"))) > 10, "no cell ran in a worker"
    again = _run(*words)
    assert [path.stat().st_mtime_ns for path in weights] == before, "a finished run was trained again"
    assert again.stdout == first.stdout

    (sweep,) = load_sweeps("smoke", "", data_root=None, folder=tmp_path / "runs")
    grid = run(sweep)
    assert gather(sweep, grid).chance == pytest.approx(1.0), "digit pairs are 100 classes"
    ready = {**grid.results, "store-b32-e1": {**grid.results["store-b32-e1"], "seconds": 0.0, "teacher_seconds": None}}
    assert "1 of 4 stores were found ready" in report(sweep, replace(grid, results=ready)), "0 s is no teacher's time"


def test_a_sweep_runs_on_a_dask_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="the extra dask is not installed")
    from tests.faults.test_dask_dump import Cluster

    (tmp_path / "grid.toml").write_text(SMALLEST)
    monkeypatch.setattr(sweeps, "HERE", tmp_path)
    (sweep,) = load_sweeps("smoke", "", data_root=None, folder=tmp_path / "runs")
    with ExitStack() as stack:
        cluster = Cluster(tmp_path, stack)
        cluster.add_worker()
        found = run(sweep, dask=cluster.address)
    assert not found.failed, found.summary()
    assert {"teacher-b50", "store-b50-e1", "metrics-b50-e1", "b50-e1-kd-seed0", "ce-seed0"} <= set(found.results)
    assert {"permuted-b50-e1", "b50-e1-permuted-seed0", "b50-e1-ls-seed0"} <= set(found.results)
    assert not {*found.failed, *found.not_run} & needed(sweep)
    alone = run(sweep)
    assert set(alone.skipped) == set(found.results), "the cluster's cells were run again"
    assert "## digit-pairs" in report(sweep, alone)


def test_every_scale_says_its_cost_without_data() -> None:
    for scale in ("smoke", "cpu", "paper"):
        for sweep in load_sweeps(scale, "", data_root=None, folder=Path("nowhere")):
            cost = cost_of(sweep)
            assert cost.runs == len(sweep.batch_sizes)
            assert cost.live > cost.dumps > 0
            assert cost.students > 0
            assert f"{cost.count} students" in str(cost)


def test_rate_grows_with_the_root_of_the_batch_and_every_asked_epoch_is_kept() -> None:
    sweep = load_sweeps("cpu", "cifar100", data_root=None, folder=Path("nowhere"))[0]
    rates = [sweep.teacher_settings(size)["lr"] for size in sweep.batch_sizes]
    assert rates == pytest.approx([rates[0] * math.sqrt(size / sweep.batch_sizes[0]) for size in sweep.batch_sizes])
    for size in sweep.batch_sizes:
        settings = sweep.teacher_settings(size)
        assert all(epochs % settings["keep_every"] == 0 for epochs in sweep.epochs)
        assert settings["eval_split"] != sweep.test


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


def test_label_doubt_is_the_mean_of_one_minus_p_of_the_label(tmp_path: Path) -> None:
    source = small_source(300)
    small = write_small_store(tmp_path / "s", source, topk=NUM_CLASSES, precision="exact")
    prob = small.logits.softmax(dim=1)[torch.arange(300), torch.tensor(source.labels)]
    assert label_doubt(kdcache.open_store(small.path)) == pytest.approx(1 - float(prob.mean()), rel=2e-3)


def test_selector_takes_structure_only_from_accurate_teachers() -> None:
    rows = [
        _row("b32-e2", val=0.50, structure=9.0),
        _row("b32-e8", val=0.79, structure=3.0),
        _row("b32-e24", val=0.80, structure=1.0),
        _row("b64-e24", val=0.70, structure=5.0),
    ]
    assert select(rows).name == "b32-e8"
    assert {role: row.name for role, row in by_role(rows).items()} == {
        "selected": "b32-e8",
        "most-accurate": "b32-e24",
        "longest": "b32-e24",
    }
    tested = under_test(rows, ("selected", "most-accurate", "longest"))
    assert [(row.name, roles) for row, roles in tested] == [
        ("b32-e8", "selected"),
        ("b32-e24", "most-accurate, longest"),
    ]
    assert [row.name for row, _ in under_test(rows, ("all",))] == [row.name for row in rows]


def test_rank_correlation_knows_ties_and_order() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 1, 2, 2], [1, 1, 2, 2]) == pytest.approx(1.0)
    assert np.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))


def test_partial_rank_correlation_is_that_of_the_textbook_formula() -> None:
    x, y, z = np.random.default_rng(0).standard_normal((3, 30))
    xy, xz, yz = rank_correlation(x, y), rank_correlation(x, z), rank_correlation(y, z)
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert rank_correlation(x, y, given=z) == pytest.approx(expected)
    assert np.isnan(rank_correlation(z, y, given=z))


def test_permutation_p_counts_the_pairings_of_three() -> None:
    # of the 6 orders of three, 2 have |rho| = 1 and 4 have |rho| = 1/2
    assert permutation_p([1, 2, 3], [1, 2, 3], draws=20_000) == pytest.approx(1 / 3, abs=0.02)
    assert permutation_p([1, 2, 3], [1, 3, 2], draws=20_000) == pytest.approx(1.0)
    assert permutation_p(range(12), range(12), draws=2_000) == pytest.approx(1 / 2001)


def test_interval_of_a_difference_is_students_with_pooled_spread() -> None:
    sd, freedom = pooled_sd([[1.0, 3.0], [2.0, 2.0, 5.0], [7.0]])
    assert (sd, freedom) == (pytest.approx(math.sqrt((2 + 6) / 3)), 3)
    assert half_width(sd, freedom, 2, 3) == pytest.approx(t_975(3) * sd * math.sqrt(5 / 6))
    for known, quantile in {1: 12.706, 2: 4.303, 3: 3.182, 5: 2.571, 10: 2.228, 30: 2.042}.items():
        assert t_975(known) == pytest.approx(quantile, rel=0.01)
    assert math.isnan(half_width(*pooled_sd([[1.0], [2.0]]), 1, 1))


@pytest.mark.parametrize(
    ("permuted", "smoothed", "plain", "expected"),
    [
        (50.0, 50.0, 50.0, "distillation"),
        (60.0, 60.0, 50.0, "regularisation"),
        (50.0, 50.0, 60.0, "no gain"),
        (50.0, 50.0, 70.0, "harm"),
        (50.0, 60.0, 50.0, "beats permuted and kd-pt only"),
    ],
)
def test_verdict_follows_the_intervals(permuted: float, smoothed: float, plain: float, expected: str) -> None:
    arms = {"true": [60.0] * 3, "permuted": [permuted] * 3, "kd-pt": [55.0] * 3, "ls": [smoothed] * 3}
    assert verdict(arms, [plain] * 3, sd=1.0, freedom=10) == expected
    assert verdict(arms, [], sd=1.0, freedom=10) == "not decidable"
    dead = verdict(arms, [0.5] * 3, sd=1.0, freedom=10, chance=0.5)
    assert dead == "not decidable: without a teacher at chance"


def test_held_out_rows_are_the_last_of_every_class() -> None:
    labels = np.array([0, 1, 0, 1, 0, 1, 1])
    assert held_out(labels, 1).tolist() == [False, False, False, False, True, False, True]
    assert held_out(labels, 2).sum() == 4


def test_smaller_images_keep_rows_labels_and_means(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1)):
        for wnid in ("n1", "n2"):
            folder = tmp_path / "tiny-imagenet-200" / split / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{wnid}_{number}.png")
    card = tmp_path / "card.toml"
    text = (ROOT / "data" / "cards" / "tiny-imagenet.toml").read_text().replace("num_classes = 200", "num_classes = 2")
    card.write_text(text)
    out = write_small(str(card), tmp_path / "d.npz", data_root=tmp_path, side=32, val_per_class=1)
    before = out.stat().st_mtime_ns
    assert write_small(str(card), out, data_root=tmp_path, side=32, val_per_class=1).stat().st_mtime_ns == before
    small = {split: open_dataset("npz", split=split, root=out) for split in ("train", "val", "test")}
    assert {split: source.labels.tolist() for split, source in small.items()} == {
        "train": [0, 0, 1, 1],
        "val": [0, 1],
        "test": [0, 1],
    }
    large = open_dataset(str(card), split="train", root=tmp_path)
    for row, other in enumerate((0, 1, 3, 4)):
        mean = np.asarray(large.example(other), dtype=float).reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
        assert np.abs(mean - small["train"].example(row)).max() <= 1
