"""The partial-KD recipe: fair trials, settings chosen without test rows, one dump a teacher, honest arithmetic."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdcache
from kdcache.datasets.cards import load_card
from kdcache.datasets.row_range import parse_split
from kdcache.errors import ConfigError, IncompatibleError, NotFoundError
from kdcache.parallel import GridResult
from pipelines.partial_kd import recipe as recipes
from pipelines.partial_kd.cells import chosen_settings, student_cells, teacher_cells, trial_cells
from pipelines.partial_kd.cost import cost_of, forward_operations
from pipelines.partial_kd.diagnosis import COARSE
from pipelines.partial_kd.opinion import ALPHA, CorrelationSums, diagnose, structure_of
from pipelines.partial_kd.recipe import MAIN, Recipe, load_recipe
from pipelines.partial_kd.results import markdown, plots, rows_of, teacher_times, write_results
from tests.small_store import NUM_CLASSES, small_source, write_small_store

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "data" / "cache"
SCALES = [(data, scale) for data in ("cifar100", "imagenet", "ptb", "synthetic") for scale in ("smoke", "cpu", "paper")]


def _recipe(data: str = "cifar100", scale: str = "cpu", folder: Path = Path("runs")) -> Recipe:
    return load_recipe(data, scale, data_root=None, folder=folder)


def _grid(results: dict[str, dict[str, Any]]) -> GridResult:
    return GridResult(results=results, failed={}, not_run={}, skipped=(), seconds={})


def _student(accuracy: float, **more: Any) -> dict[str, Any]:
    return {"accuracy": accuracy, "nll": 3.0, "ece": 0.1, "rows": 8000, "epochs": 10, **more}


@pytest.mark.parametrize(("data", "scale"), SCALES)
def test_every_method_has_as_many_trials_and_none_of_them_sees_a_test_row(data: str, scale: str) -> None:
    recipe = _recipe(data, scale)
    trials = list(trial_cells(recipe))
    if recipe.tuning is None:
        assert trials == []
        return
    counts = Counter(cell.arguments["method"] for cell in trials)
    assert set(counts) == set(recipe.tuning.values)
    assert len(set(counts.values())) == 1
    assert {arm.method for arm in recipe.arms} <= set(recipe.tuning.values)
    judged = {cell.arguments["eval_split"] for cell in trials}
    reported = {cell.arguments["eval_split"] for cell in student_cells(recipe, _firsts(recipe), recipe.teachers)}
    assert judged == {recipe.tuning.eval_split}
    assert not {parse_split(split)[0] for split in judged} & {parse_split(split)[0] for split in reported}
    name, start, _ = parse_split(recipe.tuning.eval_split)
    for settings in (*recipe.teachers.values(), {"split": recipe.split}):
        other, _, stop = parse_split(settings["split"])
        assert other != name or (stop is not None and stop <= start), "validation rows were trained on"


def test_a_method_with_more_trials_than_others_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(recipes.__file__).parent / "cifar100.toml").read_text()
    unfair = text.replace("temperature = [1.0, 2.0] }", "temperature = [1.0, 2.0, 3.0] }", 1)
    assert unfair != text
    (tmp_path / "cifar100.toml").write_text(unfair)
    monkeypatch.setattr(recipes, "HERE", tmp_path)
    with pytest.raises(ConfigError, match="same number of trials"):
        _recipe()


def test_the_best_trial_on_validation_rows_wins_and_a_diverged_one_never_does() -> None:
    recipe = _recipe()
    assert recipe.tuning is not None
    scores = {"ce": [0.1, 0.3, 0.3, 0.2], "kd": [0.0, 0.0, 0.0, 0.0]}
    results = {f"trial-{m}-{i}": _student(score) for m, found in scores.items() for i, score in enumerate(found)}
    results["trial-kd-0"]["diverged"] = "loss is NaN"
    chosen = chosen_settings(recipe, _grid(results).results)
    assert chosen == {"ce": recipe.tuning.trials("ce")[1], "kd": recipe.tuning.trials("kd")[1]}
    words = {f"trial-ce-{i}": _student(0.1, perplexity=value) for i, value in enumerate([9.0, 8.0, 7.0, 8.5])}
    assert chosen_settings(recipe, words)["ce"] == recipe.tuning.trials("ce")[2]


def test_students_get_the_settings_that_won_but_keep_what_their_arm_is_about() -> None:
    recipe = _recipe()
    tuned = {"lr": 0.5, "temperature": 4.0, "options.hard_smoothing": 0.1, "topk": 3}
    cells = {cell.name: cell.arguments for cell in student_cells(recipe, {"kd-topk": tuned}, recipe.teachers)}
    assert set(cells) == {f"kd-topk{k}-seed{seed}" for k in ("", "-5", "-25") for seed in recipe.seeds}
    assert cells["kd-topk-25-seed1"]["topk"] == 25
    assert cells["kd-topk-25-seed1"]["lr"] == 0.5
    assert cells["kd-topk-seed0"]["options"] == {"hard_smoothing": 0.1}
    assert len({settings["store"] for settings in cells.values()}) == 1, "every k is read from one store"


@pytest.mark.parametrize(("data", "scale"), SCALES)
def test_every_teacher_is_asked_once_whatever_reads_it(data: str, scale: str) -> None:
    recipe = _recipe(data, scale)
    cells = list(teacher_cells(recipe, recipe.teachers))
    dumps = [cell for cell in cells if cell.name.startswith("store-")]
    assert [cell.name for cell in dumps] == [f"store-{teacher}" for teacher in recipe.teachers]
    students = [*student_cells(recipe, _firsts(recipe), recipe.teachers), *trial_cells(recipe)]
    assert {cell.arguments["store"] for cell in students} <= {cell.arguments["out"] for cell in dumps}
    assert len({cell.name for cell in (*cells, *students)}) == len(cells) + len(students)


def test_tables_pair_seeds_and_teacher_time_is_its_own_pace_times_what_students_read(tmp_path: Path) -> None:
    recipe = _recipe(folder=tmp_path)
    results: dict[str, dict[str, Any]] = {
        "store-main": {"seconds": 20.0, "rows_and_views": 40_000, "bytes": 1, "quality": {"top1": 0.6, "nll": 1.4}}
    }
    for seed, (ce, kd) in enumerate([(0.30, 0.33), (0.32, 0.36)]):
        results[f"ce-seed{seed}"] = _student(ce, seed=seed)
        results[f"kd-seed{seed}"] = _student(kd, seed=seed, rescaling={"omega_p50": 1.2})
        results[f"kd-topk-seed{seed}"] = _student(kd, seed=seed, topk=10)
        results[f"kd-topk-5-seed{seed}"] = _student(ce, seed=seed, topk=5)
    results["trial-kd-0"] = _student(0.2, epochs=4)
    found = _grid(results)
    rows = {row.arm.name: row for row in rows_of(recipe, found)}
    assert rows["kd"].gains == pytest.approx({0: 3.0, 1: 4.0})
    assert rows["ce"].gains == {}
    (time,) = teacher_times(recipe, found)
    assert time.readers == 7
    assert time.live == pytest.approx(20.0 / 40_000 * 8000 * (6 * 10 + 4))
    assert "at most" in str(time), "start-up and writing are counted as the teacher's"
    results["store-main"]["teacher_seconds"] = 8.0
    (time,) = teacher_times(recipe, _grid(results))
    assert time.live == pytest.approx(8.0 / 40_000 * 8000 * (6 * 10 + 4))
    assert "at most" not in str(time)
    text = markdown(recipe, found)
    assert "| kd | - | 2 | 34.50 ± 2.12 | +3.50 [-2.85, +9.85] | 3.000 | 0.100 | - | 1.20 |" in text
    write_results(recipe, found, tmp_path / "results")
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [
        "partial_kd-cifar100.json",
        "partial_kd-cifar100.svg",
        "partial_kd-cifar100.table.md",
    ]


@pytest.mark.parametrize(("data", "scale"), [("cifar100", "paper"), ("imagenet", "paper"), ("cifar100", "cpu")])
def test_a_dry_run_counts_every_student_and_trial(data: str, scale: str) -> None:
    recipe = _recipe(data, scale)
    cost = cost_of(recipe)
    assert cost.count == sum(len(arm.seeds) for arm in recipe.arms)
    assert cost.trials == len(list(trial_cells(recipe)))
    teacher = forward_operations(recipe.teachers[MAIN]["model"], load_card(recipe.dataset))
    assert cost.dumps == pytest.approx(teacher * cost.rows * cost.views * len(recipe.teachers))
    reading = sum(len(arm.seeds) for arm in recipe.arms if arm.reads_teacher)
    if not cost.trials:
        assert cost.live == pytest.approx(teacher * cost.rows * recipe.student["epochs"] * reading)
    assert f"{cost.count} students, {cost.trials} trials" in str(cost)


def test_operations_are_those_of_the_published_networks() -> None:
    card = load_card("imagenet")
    assert forward_operations("torchvision:resnet50", card) == pytest.approx(2 * 4.09e9, rel=0.01)
    assert forward_operations("torchvision:resnet18", card) == pytest.approx(2 * 1.81e9, rel=0.01)
    # an LSTM layer of width w has 8 w^2 weights, the head w K; the embedding is looked up
    assert forward_operations("lstm-100", load_card("ptb")) == 2 * (8 * 100**2 + 100 * 10_000)


def test_perplexity_is_not_drawn_as_points_nor_a_part_of_the_classes_as_all(tmp_path: Path) -> None:
    recipe = _recipe("ptb", folder=tmp_path)
    results = {}
    for arm, topk in {"ce": None, "kd": 64, "kd-topk": 10, "kd-topk-2": 2, "kd-topk-64": 64}.items():
        results[f"{arm}-seed0"] = _student(0.1, perplexity=500.0 - len(arm), topk=topk)
    gains, sweep = plots(recipe, rows_of(recipe, _grid(results)))
    assert "gain over ce [perplexity]" in gains.chart
    assert sweep.title == "kd-topk by k, mean and range of seeds", "kd reads 64 of 10,000 classes here"
    assert sweep.chart.count("<circle") == 3


def test_cost_of_data_whose_card_says_neither_classes_nor_shape(tmp_path: Path) -> None:
    file = tmp_path / "mine.npz"
    np.savez(file, train_images=np.zeros((60, 12, 12, 3), np.uint8), train_labels=np.arange(60) % 7)
    recipe = replace(_recipe("cifar100", "smoke"), dataset="npz", data_root=file, split="train", topk=5)
    cost = cost_of(recipe)
    assert cost.rows == 60
    known = replace(load_card("npz"), num_classes=7, image_shape=(3, 12, 12))
    assert cost.dumps == pytest.approx(forward_operations("cnn-4", known) * 60 * cost.views)
    with pytest.raises(NotFoundError, match=r"nowhere.npz"):
        cost_of(replace(recipe, data_root=tmp_path / "nowhere.npz"))


def test_correlations_are_pearsons_in_whatever_batches_rows_come() -> None:
    values = np.random.default_rng(0).dirichlet(np.ones(6), size=200)
    for constant in (False, True):
        if constant:
            values[:, 2] = 0.25
        sums = CorrelationSums(6)
        for start in range(0, 200, 70):
            sums.add(torch.from_numpy(values[start : start + 70]))
        found = sums.result()
        if constant:
            assert (found[2] == 0).all()
        else:
            assert np.allclose(found, np.corrcoef(values, rowvar=False))


def test_structure_is_all_of_a_grouping_that_is_there_and_chance_of_one_that_is_not() -> None:
    assert sorted(np.bincount(COARSE)) == [5] * 20
    group = np.asarray(COARSE)
    planted = (group[:, None] == group).astype(float)
    there = structure_of(planted, COARSE)
    assert (there.within, there.between, there.neighbours) == (1.0, 0.0, 1.0)
    rng = np.random.default_rng(0)
    noise = np.mean([structure_of(rng.normal(size=(100, 100)), COARSE).neighbours for _ in range(20)])
    assert noise == pytest.approx(there.chance, abs=0.01)
    assert there.chance == pytest.approx(4 / 99)


def test_a_diagnosis_is_read_from_a_store_of_all_classes(tmp_path: Path) -> None:
    source = small_source(300)
    small = write_small_store(tmp_path / "all", source, topk=NUM_CLASSES, precision="exact")
    groups = [label // 2 for label in range(NUM_CLASSES)]
    found = diagnose(kdcache.open_store(small.path), groups, temperatures=(1.0, 4.0))
    prob = (small.logits / 4.0).softmax(dim=1).double()
    own = prob.gather(1, torch.tensor(source.labels)[:, None])[:, 0]
    omega = 0.1 + 0.9 * 4.0 * (own - 1 / NUM_CLASSES) / (1 - 1 / NUM_CLASSES)
    assert found.at[4.0].omega_mean == pytest.approx(float(omega.mean()), abs=2e-3)
    assert found.at[4.0].omega_sd == pytest.approx(float(omega.std()), rel=2e-2)
    assert found.at[4.0].correlations == pytest.approx(np.corrcoef(prob.numpy(), rowvar=False), abs=5e-3)
    few = write_small_store(tmp_path / "few", source, topk=3)
    less = diagnose(kdcache.open_store(few.path), groups, temperatures=(1.0,))
    assert less.at[1.0].correlations is None
    assert less.at[1.0].omega_mean == pytest.approx(found.at[1.0].omega_mean, abs=2e-3)
    with pytest.raises(IncompatibleError, match="the groups name 3"):
        diagnose(kdcache.open_store(few.path), [0, 0, 1])


def test_rescaling_of_every_method_is_its_closed_form_where_there_is_one(tmp_path: Path) -> None:
    source = small_source(300)
    small = write_small_store(tmp_path / "all", source, topk=NUM_CLASSES, precision="exact")
    found = diagnose(kdcache.open_store(small.path), temperatures=(1.0, 4.0))
    k = NUM_CLASSES
    for t in (1.0, 4.0):
        own = (small.logits / t).softmax(dim=1)[torch.arange(300), torch.tensor(source.labels)].double()
        omega = (1 - ALPHA) + ALPHA * t * (own - 1 / k) / (1 - 1 / k)
        for method in ("kd", "kd-pt"):  # METHODS section 2: the same factor
            assert found.methods[method][t]["omega_mean"] == pytest.approx(float(omega.mean()), abs=3e-3), method
            assert found.methods[method][t]["omega_confidence_correlation"] == pytest.approx(1.0, abs=1e-3)
        assert found.at[t].omega_mean == pytest.approx(found.methods["kd"][t]["omega_mean"], abs=1e-3)
    (ls,) = found.methods["ls"].values()
    assert ls["omega_p5"] == pytest.approx(ls["omega_p95"]), "label smoothing scales every row alike"


def test_the_diagnosis_reads_any_store_by_one_command(tmp_path: Path) -> None:
    source = small_source(300)
    write_small_store(tmp_path / "one.zarr", source, topk=NUM_CLASSES)
    write_small_store(tmp_path / "few.zarr", source, topk=3)
    (tmp_path / "groups").write_text("".join(f"{'animal' if i % 2 else 'thing'}\n" for i in range(NUM_CLASSES)))
    words = ["pipelines.partial_kd.diagnosis", str(tmp_path / "one.zarr"), str(tmp_path / "few.zarr")]
    shown = _run(*words, "--groups", str(tmp_path / "groups"), "--results", str(tmp_path / "out"))
    assert "| one | 4 |" in shown
    assert "| few | kd-topk | 1 |" in shown
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "diagnosis.table.md",
        "diagnosis.classes.svg",
        "diagnosis.rescaling.svg",
    }


@pytest.mark.parametrize(("data", "folder"), [("cifar100", "cifar-100-python"), ("imagenet", "tiny-imagenet-200")])
def test_the_recipe_runs_from_the_command_line_and_skips_what_is_done(data: str, folder: str, tmp_path: Path) -> None:
    if not (CACHE / folder).is_dir():
        pytest.skip(f"{folder} is not under {CACHE}")
    words = ["pipelines.partial_kd.run", "--data", data, "--scale", "smoke", "--folder", str(tmp_path)]
    first = _run(*words, "--results", str(tmp_path / "results"))
    assert "gain over ce" in first
    assert json.loads((tmp_path / "results" / f"partial_kd-{data}.json").read_text())["cells"]
    cells = sorted((tmp_path / data / "smoke" / "cells").glob("*.json"))
    before = [path.stat().st_mtime_ns for path in cells]
    assert _run(*words) == first
    assert [path.stat().st_mtime_ns for path in cells] == before, "a finished cell was run again"


def _firsts(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The first trial of every method, as if it had won."""
    return {} if recipe.tuning is None else {m: recipe.tuning.trials(m)[0] for m in recipe.tuning.values}


def _run(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
