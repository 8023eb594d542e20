"""The study of smoothed and over-confident teachers: fair trials, one dump a teacher, measures that mean it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kdcache
from kdcache.datasets.row_range import parse_split
from kdcache.errors import ConfigError
from pipelines.partial_kd import teacher_study
from pipelines.partial_kd.teacher_cells import (
    chosen_settings,
    early_work,
    student_cells,
    sweep_cells,
    teacher_cells,
    trial_cells,
)
from pipelines.partial_kd.teacher_measures import level_temperature, measure, opinion
from pipelines.partial_kd.teacher_report import markdown, paired, shown
from pipelines.partial_kd.teacher_study import Study, load_study
from pipelines.partial_kd.teachers import run
from tests.small_store import NUM_CLASSES, small_source, teacher_logits, write_small_store

ROOT = Path(__file__).resolve().parents[2]
GROUPS = ((0, 1, 2), (3, 4), tuple(range(5, NUM_CLASSES)))
ROWS = 400


def _study(scale: str = "cpu") -> Study:
    return load_study(scale, data_root=None, folder=Path("runs"))


def _opinion(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Log p (N, K) float64 with a share of chance, and labels."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, NUM_CLASSES, size=ROWS)
    logits = rng.normal(size=(ROWS, NUM_CLASSES))
    logits[np.arange(ROWS), label] += 3.0
    return torch.from_numpy(logits).log_softmax(dim=1), torch.from_numpy(label)


def _others(log_prob: Tensor, label: Tensor, temperature: float = 1.0) -> dict[str, Any]:
    return opinion((log_prob / temperature).log_softmax(dim=1), _opinion(1)[0], label, GROUPS, None)


@pytest.mark.parametrize("scale", ["smoke", "cpu"])
def test_every_arm_has_as_many_trials_and_none_of_them_sees_a_test_row(scale: str) -> None:
    study = _study(scale)
    trials = list(trial_cells(study, study.order))
    counts = Counter(cell.name.rsplit("-", 2)[0] for cell in trials)
    assert len(counts) == len(study.arms)
    assert len(set(counts.values())) == 1
    judged = {cell.arguments["eval_split"] for cell in trials}
    chosen = {arm.name: 0 for arm in study.arms}
    students = [*student_cells(study, chosen, study.order), *sweep_cells(study, chosen)]
    assert {cell.arguments["eval_split"] for cell in students} == {study.student["eval_split"]}
    assert not judged & {study.student["eval_split"]}
    assert len({cell.name for cell in (*teacher_cells(study), *trials, *students)}) == len(
        [*teacher_cells(study), *trials, *students]
    )


@pytest.mark.parametrize("scale", ["smoke", "cpu"])
def test_parts_are_rows_the_teacher_was_trained_on_and_rows_it_was_not(scale: str) -> None:
    study = _study(scale)
    _, _, end = parse_split(study.common["split"])
    _, first, last = parse_split(study.rows)
    assert end is not None
    assert last is not None
    assert first + study.parts["seen"][1] <= end <= first + study.parts["unseen"][0]
    assert last <= parse_split(study.trial_split)[1] or parse_split(study.trial_split)[0] != "train"


@pytest.mark.parametrize("scale", ["smoke", "cpu"])
def test_every_teacher_is_asked_once_and_students_read_parts_of_that_store(scale: str) -> None:
    study = _study(scale)
    dumps = [cell for cell in teacher_cells(study) if cell.name.startswith("store-")]
    assert len(dumps) == len(study.teachers) * len(study.seeds)
    assert len({cell.arguments["dump"]["weights"] for cell in dumps}) == len(dumps)
    parts = {out for cell in dumps for _, out in cell.arguments["parts"].values()}
    chosen = {arm.name: 0 for arm in study.arms}
    students = [*trial_cells(study, study.order), *student_cells(study, chosen, study.order)]
    assert {cell.arguments["store"] for cell in students} <= parts


def test_settings_with_the_best_mean_over_trial_seeds_are_chosen() -> None:
    study = _study()
    arm = next(arm for arm in study.arms if arm.name == "unseen-plain-kd")
    study = replace(study, trial_seeds=(100, 101))
    scores = {100: [0.1, 0.9, 0.5, 0.6], 101: [0.1, 0.0, 0.6, 0.5]}
    results = {
        f"trial-{arm.name}-{n}-seed{seed}": {"accuracy": value}
        for seed, values in scores.items()
        for n, value in enumerate(values)
    }
    assert chosen_settings(study, results) == {arm.name: 2}
    del results[f"trial-{arm.name}-3-seed101"]
    assert chosen_settings(study, results) == {}


def test_students_of_all_seeds_follow_the_trials_of_their_method() -> None:
    study = _study()
    assert study.order == ("ce", "kd", "kd-pt", "kd-sim", "ls")
    chosen = {arm.name: 1 for arm in study.arms}
    of_kd, swept = list(student_cells(study, chosen, ["kd"])), list(sweep_cells(study, chosen))
    arms = [arm for arm in study.arms if arm.method == "kd"]
    assert len(of_kd) == len(arms) * len(study.seeds)
    assert len(swept) == len(of_kd) * (len(arms[0].settings) - 1)
    assert not {cell.name for cell in of_kd} & {cell.name for cell in swept}


def test_arms_with_different_numbers_of_trials_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "pipelines" / "partial_kd" / "teachers.toml").read_text()
    (tmp_path / "teachers.toml").write_text(text.replace("alpha = [0.1, 0.3, ", "alpha = [0.1, ", 1))
    monkeypatch.setattr(teacher_study, "HERE", tmp_path)
    with pytest.raises(ConfigError, match="as many trials"):
        _study()


def test_the_early_teacher_is_the_kept_epoch_nearest_in_validation_accuracy(tmp_path: Path) -> None:
    def lines(*scores: float) -> str:
        return "".join(json.dumps({"epoch": n, "test_top1": s}) + "\n" for n, s in enumerate(scores, start=1))

    run, like = tmp_path / "run", tmp_path / "like"
    (run / "epochs").mkdir(parents=True)
    like.mkdir()
    (run / "metrics.jsonl").write_text(lines(0.5, 0.72, 0.69, 0.8))
    (like / "metrics.jsonl").write_text(lines(0.9, 0.7))
    for epoch in (1, 2, 3, 4):
        (run / "epochs" / f"epoch-{epoch:05d}.safetensors").write_bytes(bytes([epoch]))
    done = early_work({"run": str(run), "like": str(like), "out": str(tmp_path / "out")})
    assert (done["epoch"], done["accuracy"], done["wanted"]) == (3, 0.69, 0.7)
    assert (tmp_path / "out" / "last.safetensors").read_bytes() == bytes([3])


def test_relations_and_example_add_up_to_what_is_said_beyond_all_alike() -> None:
    log_prob, label = _opinion()
    found = _others(log_prob, label)
    assert found["relations"] >= 0
    assert found["example"] >= 0
    whole = math.log(NUM_CLASSES - 1) * (1 - found["entropy"])
    assert found["relations"] + found["example"] == pytest.approx(whole)


def test_a_teacher_that_finds_all_others_alike_has_neither_and_one_row_a_class_has_no_example() -> None:
    _, label = _opinion()
    alike = torch.full((ROWS, NUM_CLASSES), 0.05, dtype=torch.float64)
    alike[torch.arange(ROWS), label] = 1.0
    found = _others(alike.log().log_softmax(dim=1), label)
    assert found["relations"] == pytest.approx(0, abs=1e-9)
    assert found["example"] == pytest.approx(0, abs=1e-9)
    assert found["group_share"] == pytest.approx(found["group_chance"])
    rows = torch.randn(NUM_CLASSES, NUM_CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = _others(rows.log_softmax(dim=1)[label], label)
    assert found["relations"] > 0.1
    assert found["example"] == pytest.approx(0, abs=1e-9)


def test_mass_on_the_labels_group_is_its_group_share() -> None:
    _, label = _opinion()
    number = torch.tensor([next(i for i, group in enumerate(GROUPS) if c in group) for c in range(NUM_CLASSES)])
    same = number[label][:, None] == number[None, :]
    found = _others(torch.where(same, 0.0, -30.0).double().log_softmax(dim=1), label)
    assert found["group_share"] == pytest.approx(1.0, abs=1e-6)


def test_logits_times_two_change_the_level_temperature_and_nothing_at_the_level() -> None:
    log_prob, label = _opinion()
    hot = (2 * log_prob).log_softmax(dim=1)
    one, two = (level_temperature(x, label, 0.5) for x in (log_prob, hot))
    assert one is not None
    assert two == pytest.approx(2 * one, rel=1e-6)
    expected, found = (_others(x, label, t) for x, t in ((log_prob, one), (hot, 2 * one)))
    for name in ("p_y_sd", "rank", "entropy", "relations", "example", "group_share", "neighbours", "reference"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6), name
    assert level_temperature(log_prob, label, 0.9999) is None


def test_a_store_is_measured_against_another_teachers(tmp_path: Path) -> None:
    source = small_source(ROWS)
    plain = teacher_logits(source)[0]
    noise = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1))
    stores = {
        name: kdcache.open_store(
            write_small_store(tmp_path / name, source, logits=x, topk=NUM_CLASSES, precision="exact").path
        )
        for name, x in (("plain", plain), ("hot", 2 * plain), ("noisy", plain + 3 * noise))
    }
    found = {name: measure(store, stores["plain"], GROUPS, level=0.3) for name, store in stores.items()}
    rank = {name: one["at"]["level"]["rank"] for name, one in found.items()}
    assert rank["plain"] == pytest.approx(1.0)
    assert rank["hot"] > 0.999 > 0.9 > rank["noisy"]
    label = torch.tensor(source.labels)
    own = plain.double().softmax(dim=1).gather(1, label[:, None])
    assert found["plain"]["p_y"] == pytest.approx(float(own.mean()), abs=2e-3)
    assert found["plain"]["omega_sd"]["1"] == pytest.approx(0.9 * float(own.std()) / (1 - 1 / NUM_CLASSES), rel=1e-2)
    assert found["hot"]["omega_sd"]["4"] == pytest.approx(2 * found["plain"]["omega_sd"]["2"], rel=1e-2)
    assert found["plain"]["at"]["1"]["reference"] == pytest.approx(1.0)
    json.dumps(found)


def test_differences_are_of_the_same_seeds() -> None:
    values = paired({0: 3.0, 1: 5.0, 2: 9.0}, {1: 4.0, 0: 1.0})
    assert values == [2.0, 1.0]
    assert shown(values).startswith("+1.50 [")
    assert shown([]) == "-"


def test_the_study_runs_from_the_command_line_and_skips_what_is_done(tmp_path: Path) -> None:
    words = ["--scale", "smoke", "--folder", str(tmp_path)]
    first = _run(*words, "--results", str(tmp_path / "results"))
    assert "| hot - plain |" in first
    document = json.loads((tmp_path / "results" / "partial_kd-teachers.json").read_text())
    hot, plain = (document["cells"][f"measure-unseen-{name}-seed0"] for name in ("hot", "plain"))
    assert hot["omega_sd"]["4"] == pytest.approx(2 * plain["omega_sd"]["2"], rel=0.02), "hot at 2T is plain at T"
    assert (tmp_path / "results" / "partial_kd-teachers.svg").is_file()
    cells = sorted((tmp_path / "teachers" / "smoke" / "cells").glob("*.json"))
    before = [path.stat().st_mtime_ns for path in cells]
    study = load_study("smoke", data_root=None, folder=tmp_path)
    assert markdown(study, run(study)) in first
    assert [path.stat().st_mtime_ns for path in cells] == before, "a finished cell was run again"


def _run(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.partial_kd.teachers", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
