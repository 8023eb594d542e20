"""The grid of a recipe as cells: teachers, their stores, trials, students. Each function is one cell's work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kdcache.distill import DistillConfig, distill
from kdcache.dump import DumpConfig, dump_teacher
from kdcache.errors import NumericError
from kdcache.parallel import Cell
from kdcache.store.info import describe
from kdcache.teacher_training import TeacherConfig, train_teacher
from pipelines.earlier import made_at
from pipelines.partial_kd.recipe import MAIN, Arm, Recipe

Figures = Mapping[str, Any]
KEPT = (
    *("method", "seed", "topk", "temperature", "alpha", "options", "lr", "weight_decay", "epochs", "rows"),
    *("accuracy", "top5", "nll", "ece", "perplexity", "train_accuracy", "train_agreement", "train_loss"),
    *("rescaling", "method_facts", "seconds", "store_root_digest", "eval_split"),
)


def teacher_work(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train a teacher, or continue; its figures and where its weights are."""
    config = TeacherConfig(resume=True, **_paths(settings))
    trained = made_at(settings["out"], lambda: train_teacher(config))
    kept = {name: trained.figures.get(name) for name in ("accuracy", "nll", "ece", "perplexity", "seconds", "epochs")}
    return {**kept, "weights": str(trained.weights)}


def store_work(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Ask a teacher once; what it cost, and how good it is on the rows students train on."""
    config = DumpConfig(**_paths(settings))
    made = made_at(config.out, lambda: dump_teacher(config))
    facts = describe(made.store)
    return {
        "store": made.store,
        "seconds": made.seconds,
        "teacher_seconds": made.teacher_seconds or made.stages.get("forward"),
        "rows_and_views": made.rows_written,
        "bytes": facts["bytes_on_disk"],
        "full_logits_bytes": facts["full_logits_bytes"],
        "quality": dict(made.quality),
        "root_digest": made.root_digest,
    }


def student_work(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train a student; its figures. One whose loss became NaN has accuracy 0."""
    config = DistillConfig(resume=True, **_paths(settings))
    try:
        figures = made_at(settings["out"], lambda: distill(config)).figures
    except NumericError as error:
        return {"method": settings["method"], "seed": settings["seed"], "accuracy": 0.0, "diverged": error.message}
    return {name: figures[name] for name in KEPT if name in figures}


def teacher_cells(recipe: Recipe, teachers: Iterable[str]) -> Iterator[Cell]:
    """Teachers, each with its one dump."""
    for teacher in teachers:
        given = recipe.weights if teacher == MAIN else None
        settings = recipe.teacher_settings(teacher)
        weights = str(given or Path(settings["out"]) / "last.safetensors")
        if given is None:
            yield Cell(name=f"teacher-{teacher}", run=teacher_work, arguments=settings)
        yield Cell(
            name=f"store-{teacher}",
            run=store_work,
            arguments=recipe.dump_settings(teacher, weights),
            needs=() if given else (f"teacher-{teacher}",),
        )


def trial_cells(recipe: Recipe) -> Iterator[Cell]:
    """The trials of every method that is tuned, the first trials of all methods first."""
    if recipe.tuning is None:
        return
    arms = {arm.method: arm for arm in reversed(recipe.arms) if arm.tuned_as == arm.method}
    methods = [method for method in recipe.tuning.values if method in arms]
    for number in range(len(recipe.tuning.trials(methods[0])) if methods else 0):
        for method in methods:
            tried = recipe.tuning.trials(method)[number]
            yield Cell(
                name=f"trial-{method}-{number}",
                run=student_work,
                arguments=recipe.student_settings(arms[method], recipe.tuning.seed, tried, trial=number),
                needs=(f"store-{arms[method].teacher}",),
            )


def chosen_settings(recipe: Recipe, results: Mapping[str, Figures]) -> dict[str, dict[str, Any]]:
    """The best trial of every tuned method on the validation rows; of equals the first."""
    if recipe.tuning is None:
        return {}
    chosen = {}
    for method in recipe.tuning.values:
        trials = recipe.tuning.trials(method)
        names = [f"trial-{method}-{number}" for number in range(len(trials))]
        done = [(_score(results[name]), -i, trials[i]) for i, name in enumerate(names) if name in results]
        if len(done) == len(trials):
            chosen[method] = max(done, key=lambda item: item[:2])[2]
    return chosen


def student_cells(recipe: Recipe, chosen: Mapping[str, Mapping[str, Any]], teachers: Iterable[str]) -> Iterator[Cell]:
    """Students of some teachers with their chosen settings, seed by seed: an early stop leaves whole comparisons."""
    named = tuple(teachers)
    arms = [arm for arm in recipe.arms if arm.teacher in named and (arm.tuned_as is None or arm.tuned_as in chosen)]
    for seed in recipe.seeds:
        for arm in (arm for arm in arms if seed in arm.seeds):
            tuned = {} if arm.tuned_as is None else _applied(arm, chosen[arm.tuned_as])
            yield Cell(
                name=f"{arm.name}-seed{seed}",
                run=student_work,
                arguments=recipe.student_settings(arm, seed, tuned),
                needs=(f"store-{arm.teacher}",),
            )


def _applied(arm: Arm, tuned: Mapping[str, Any]) -> dict[str, Any]:
    """Tuned settings, but for those that the arm is about."""
    return {name: value for name, value in tuned.items() if name not in arm.settings}


def _score(figures: Figures) -> float:
    perplexity = figures.get("perplexity")
    if figures.get("diverged"):
        return float("-inf")
    return -float(perplexity) if perplexity is not None else float(figures["accuracy"])


def _paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    root = settings.get("data_root")
    return {**settings, "data_root": None if root is None else Path(root)}
