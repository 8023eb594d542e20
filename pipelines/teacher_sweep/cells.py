"""A sweep as cells: data, teachers, stores, metrics, students. Each `..._work` function is one cell's work.

Every function may be killed and called again: what is finished is not done twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kdcache
from kdcache.distill import DistillConfig, distill
from kdcache.dump import DumpConfig, dump_teacher
from kdcache.errors import NumericError
from kdcache.parallel import Cell
from kdcache.store.info import describe
from kdcache.teacher_training import TeacherConfig, train_teacher
from pipelines.earlier import made_at
from pipelines.teacher_sweep.metrics import label_doubt, similarity_metrics
from pipelines.teacher_sweep.permuted import write_permuted
from pipelines.teacher_sweep.selector import Row, under_test
from pipelines.teacher_sweep.shrink import write_small
from pipelines.teacher_sweep.sweep import Sweep, Teacher

ARMS = ("true", "permuted", "kd-pt", "ls")
TRIAL_SEED = 1000  # of no reported student
KEPT = (
    "method",
    "seed",
    "lr",
    "epochs",
    "accuracy",
    "top5",
    "nll",
    "ece",
    "train_accuracy",
    "train_agreement",
    "seconds",
)


def small_work(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write the smaller data set."""
    paths = {"out": Path(settings["out"]), **_root(settings)}
    return {"file": str(write_small(**{**settings, **paths}))}


def teacher_work(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train the teachers of one batch size, or continue; validation accuracy by kept epoch."""
    config = TeacherConfig(resume=True, **{**settings, **_root(settings)})
    trained = made_at(settings["out"], lambda: train_teacher(config))
    return {
        "seconds": trained.figures["seconds"],
        "val_accuracy": {str(line["epoch"]): line["test_top1"] for line in _evaluations(trained.folder)},
    }


def store_work(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Ask one teacher once; what it cost, and how good it is on the rows students train on."""
    config = DumpConfig(**{**settings, **_root(settings)})
    made = made_at(config.out, lambda: dump_teacher(config))
    facts = describe(made.store)
    return {
        "seconds": made.seconds,
        "teacher_seconds": made.teacher_seconds or made.stages.get("forward"),
        "rows": facts["rows"],
        "bytes": facts["bytes_on_disk"],
        "full_logits_bytes": facts["full_logits_bytes"],
        "train_accuracy": float(made.quality["top1"]),
        "root_digest": made.root_digest,
    }


def metrics_work(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The similarity metrics of a store at every temperature asked for; no teacher, no images."""
    store = kdcache.open_store(settings["store"])
    found = {f"{T:g}": similarity_metrics(store, temperature=T) for T in settings["temperatures"]}
    return {"label_doubt": label_doubt(store), "by_temperature": found}


def permuted_work(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write the control of a store."""
    store, out, seed = settings["store"], settings["out"], settings["seed"]
    return {"store": made_at(out, lambda: write_permuted(store, out, seed=seed))}


def student_work(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train a student, or continue; its figures."""
    config = DistillConfig(resume=True, **{**settings, **_root(settings)})
    figures = made_at(settings["out"], lambda: distill(config)).figures
    return {name: figures[name] for name in KEPT if name in figures}


def trial_work(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train a student to try a setting; one whose loss became NaN has accuracy 0, which is an answer too."""
    try:
        return student_work(settings)
    except NumericError as error:
        return {"accuracy": 0.0, "diverged": error.message}


def teacher_cells(sweep: Sweep) -> Iterator[Cell]:
    """Data where it is made smaller, runs, stores, metrics."""
    first: tuple[str, ...] = ()
    if sweep.small:
        yield Cell(name="data", run=small_work, arguments=sweep.small_settings())
        first = ("data",)
    for size in sweep.batch_sizes:
        yield Cell(name=f"teacher-b{size}", run=teacher_work, arguments=sweep.teacher_settings(size), needs=first)
    for one in sweep.teachers:
        needs = (f"teacher-b{one.batch_size}",)
        yield Cell(name=f"store-{one.name}", run=store_work, arguments=sweep.dump_settings(one), needs=needs)
    temperatures = sorted({1.0, sweep.temperature})
    for one in sweep.teachers:
        asked = {"store": str(sweep.store(one)), "temperatures": temperatures}
        yield Cell(name=f"metrics-{one.name}", run=metrics_work, arguments=asked, needs=(f"store-{one.name}",))


def trial_cells(sweep: Sweep, rows: Sequence[Row]) -> Iterator[Cell]:
    """Students of the most accurate teacher at every rate, measured on the validation rows; none for a single rate."""
    best = max(rows, key=lambda row: row.val_accuracy).teacher
    for lr in sweep.student_lr if len(sweep.student_lr) > 1 else ():
        name = f"trial-lr{lr:g}"
        arguments = sweep.student_settings(sweep.store(best), name, lr=lr, seed=TRIAL_SEED, eval_split=sweep.val)
        yield Cell(name=name, run=trial_work, arguments=arguments, needs=(f"store-{best.name}",))


def chosen_lr(sweep: Sweep, results: Mapping[str, Mapping[str, Any]]) -> float:
    """The rate of the best trial, of equals the first."""
    if len(sweep.student_lr) == 1:
        return sweep.student_lr[0]
    return max(sweep.student_lr, key=lambda lr: float(results[f"trial-lr{lr:g}"]["accuracy"]))


def student_cells(sweep: Sweep, rows: Sequence[Row], lr: float) -> Iterator[Cell]:
    """Every student, seeds outermost so that an early stop leaves whole comparisons; arms of tested teachers last."""
    tested = [row for row, _ in under_test(rows, sweep.tested)]
    for seed in sorted({*sweep.seeds, *sweep.tested_seeds}):
        whom = rows if seed in sweep.seeds else tested
        for row in whom:
            yield _student(sweep, row, "true", lr=lr, seed=seed)
        if seed in sweep.tested_seeds:
            yield _student(sweep, rows[0], "ce", lr=lr, seed=seed)
    for row in tested:
        asked = {"store": str(sweep.store(row.teacher)), "out": str(sweep.permuted(row.teacher)), "seed": 0}
        needs = (f"store-{row.name}",)
        yield Cell(name=f"permuted-{row.name}", run=permuted_work, arguments=asked, needs=needs)
    for seed in sweep.tested_seeds:
        for row in tested:
            for arm in ARMS[1:]:
                yield _student(sweep, row, arm, lr=lr, seed=seed)


def student_name(teacher: Teacher, arm: str, seed: int) -> str:
    """The name of a student's cell; `ce` has no teacher."""
    return f"ce-seed{seed}" if arm == "ce" else f"{teacher.name}-{'kd' if arm == 'true' else arm}-seed{seed}"


def _student(sweep: Sweep, row: Row, arm: str, *, lr: float, seed: int) -> Cell:
    """True: the teacher's opinion. ls: label smoothing as unsure of the label as the teacher is."""
    method = {"true": "kd", "permuted": "kd"}.get(arm, arm)
    name = student_name(row.teacher, arm, seed)
    needs = (f"permuted-{row.name}",) if arm == "permuted" else (f"store-{row.name}",)
    arguments = sweep.student_settings(
        sweep.permuted(row.teacher) if arm == "permuted" else sweep.store(row.teacher),
        name.removesuffix(f"-seed{seed}"),
        lr=lr,
        seed=seed,
        method=method,
        options={"smoothing": row.label_doubt} if arm == "ls" else None,
    )
    return Cell(name=name, run=student_work, arguments=arguments, needs=needs)


def _evaluations(folder: Path) -> list[dict[str, Any]]:
    """The epochs of a run that were evaluated, as it logged them."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "test_top1" in line]


def _root(settings: Mapping[str, Any]) -> dict[str, Any]:
    root = settings.get("data_root")
    return {"data_root": None if root is None else Path(root)}
