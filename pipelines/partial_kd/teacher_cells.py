"""The cells of the study of teachers: training, the early and the scaled teacher, dumps, measures, trials, students.

Each `..._work` function is one cell's work and may be killed and called again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from kdcache.datasets.cards import load_card
from kdcache.derive import DeriveConfig, derive
from kdcache.loader.target_store import open_store
from kdcache.models.registry import build_model
from kdcache.models.weights import load_weights, save_weights
from kdcache.parallel import Cell
from pipelines.partial_kd.cells import store_work, student_work, teacher_work
from pipelines.partial_kd.teacher_measures import measure
from pipelines.partial_kd.teacher_study import PLAIN, Arm, Study

Figures = Mapping[str, Any]


def early_work(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the epoch of a run whose validation accuracy is nearest to another run's last, of equals the earliest."""
    run, other = Path(settings["run"]), Path(settings["like"])
    wanted = _validation(other)[-1]["test_top1"]
    kept = [line for line in _validation(run) if _weights_of(run, line["epoch"]).is_file()]
    found = min(kept, key=lambda line: (abs(line["test_top1"] - wanted), line["epoch"]))
    target = Path(settings["out"]) / "last.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_weights_of(run, found["epoch"]), target)
    return {"epoch": found["epoch"], "accuracy": found["test_top1"], "wanted": wanted, "seconds": 0.0}


def scaled_work(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write a model whose logits are those of another times a number: its last layer, multiplied."""
    card = load_card(settings["dataset"])
    built = build_model(
        settings["model"], num_classes=card.num_classes, input_shape=card.image_shape, data=card.preprocessing
    )
    load_weights(built.module, settings["weights"])
    last = built.module.get_submodule("fc")
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(settings["by"])
    target = Path(settings["out"]) / "last.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    save_weights(built.module, target, {"scaled": settings["weights"], "by": settings["by"]})
    return {"by": settings["by"], "seconds": 0.0}


def parts_work(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Ask a teacher once about all rows, then take the parts from its store."""
    made = store_work(settings["dump"])
    derived = {}
    for part, (rows, out) in settings["parts"].items():
        derived[part] = derive(DeriveConfig(store=made["store"], out=out, rows=tuple(rows))).root_digest
    return {**made, "parts": derived}


def measure_work(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the store of a teacher says; `reference` is a plain teacher of another seed."""
    reference = open_store(settings["reference"])
    return measure(open_store(settings["store"]), reference, settings["groups"], level=settings["level"])


def teacher_cells(study: Study) -> Iterator[Cell]:
    """Teachers, dumps and measures, seed by seed."""
    for seed in study.seeds:
        for teacher in study.trained:
            yield Cell(
                name=f"teacher-{teacher}-seed{seed}", run=teacher_work, arguments=study.teacher_settings(teacher, seed)
            )
        yield _early(study, seed)
        yield _scaled(study, seed)
        for teacher in study.teachers:
            places = {part: [rows, str(study.store(teacher, seed, part))] for part, rows in study.parts.items()}
            yield Cell(
                name=f"store-{teacher}-seed{seed}",
                run=parts_work,
                arguments={"dump": study.dump_settings(teacher, seed), "parts": places},
                needs=(f"teacher-{teacher}-seed{seed}",),
            )
    for seed in study.seeds:
        for part in study.parts:
            for teacher in study.teachers:
                yield _measure(study, teacher, seed, part)


def trial_cells(study: Study, methods: Iterable[str]) -> Iterator[Cell]:
    """Every setting of the arms of some methods on the validation rows, first trial seeds first."""
    wanted = set(methods)
    for seed in study.trial_seeds:
        for arm in (arm for arm in study.arms if arm.method in wanted):
            for number in range(len(arm.settings)):
                yield _student(study, arm, number, seed, trial=True)


def student_cells(study: Study, chosen: Mapping[str, int], methods: Iterable[str]) -> Iterator[Cell]:
    """Students of some methods with the settings that were chosen, seed by seed."""
    wanted = set(methods)
    for seed in study.seeds:
        for arm in study.arms:
            if arm.method in wanted and arm.name in chosen:
                yield _student(study, arm, chosen[arm.name], seed, trial=False)


def sweep_cells(study: Study, chosen: Mapping[str, int]) -> Iterator[Cell]:
    """Students with the settings that were not chosen, of the arms that are swept."""
    for seed in study.seeds:
        for arm in (arm for arm in study.arms if arm.sweep and arm.name in chosen):
            for number in range(len(arm.settings)):
                if number != chosen[arm.name]:
                    yield _student(study, arm, number, seed, trial=False)


def chosen_settings(study: Study, results: Mapping[str, Figures]) -> dict[str, int]:
    """Arm -> its settings with the best mean validation accuracy, of equals the first; arms with all their trials."""
    chosen = {}
    for arm in study.arms:
        scores = []
        for number in range(len(arm.settings)):
            found = [results.get(student_name(arm, number, seed, trial=True)) for seed in study.trial_seeds]
            scores.append([one["accuracy"] for one in found if one is not None])
        if all(len(found) == len(study.trial_seeds) for found in scores):
            chosen[arm.name] = max(range(len(scores)), key=lambda number: (sum(scores[number]), -number))
    return chosen


def student_name(arm: Arm, number: int, seed: int, *, trial: bool = False) -> str:
    """The name of a student's cell."""
    return f"{'trial' if trial else 'student'}-{arm.name}-{number}-seed{seed}"


def _student(study: Study, arm: Arm, number: int, seed: int, *, trial: bool) -> Cell:
    teacher_seed = study.seeds[study.trial_seeds.index(seed)] if trial else seed
    return Cell(
        name=student_name(arm, number, seed, trial=trial),
        run=student_work,
        arguments=study.student_settings(arm, number, seed, trial=trial),
        needs=(f"store-{arm.teacher or PLAIN}-seed{teacher_seed}",),
    )


def _early(study: Study, seed: int) -> Cell:
    name, of, like = (study.early[key] for key in ("teacher", "of", "as"))
    folders = {"run": of, "like": like, "out": name}
    return Cell(
        name=f"teacher-{name}-seed{seed}",
        run=early_work,
        arguments={key: str(study.run_folder(teacher, seed)) for key, teacher in folders.items()},
        needs=(f"teacher-{of}-seed{seed}", f"teacher-{like}-seed{seed}"),
    )


def _scaled(study: Study, seed: int) -> Cell:
    name, of, by = (study.scaled[key] for key in ("teacher", "of", "by"))
    return Cell(
        name=f"teacher-{name}-seed{seed}",
        run=scaled_work,
        arguments={
            "dataset": study.dataset,
            "model": study.common["model"],
            "weights": str(study.run_folder(of, seed) / "last.safetensors"),
            "by": by,
            "out": str(study.run_folder(name, seed)),
        },
        needs=(f"teacher-{of}-seed{seed}",),
    )


def _measure(study: Study, teacher: str, seed: int, part: str) -> Cell:
    following = study.seeds[(study.seeds.index(seed) + 1) % len(study.seeds)]
    return Cell(
        name=f"measure-{part}-{teacher}-seed{seed}",
        run=measure_work,
        arguments={
            "store": str(study.store(teacher, seed, part)),
            "reference": str(study.store(PLAIN, following, part)),
            "groups": study.groups,
            "level": study.level,
        },
        needs=(f"store-{teacher}-seed{seed}", f"store-{PLAIN}-seed{following}"),
    )


def _validation(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "test_top1" in line]


def _weights_of(run: Path, epoch: int) -> Path:
    return run / "epochs" / f"epoch-{epoch:05d}.safetensors"
