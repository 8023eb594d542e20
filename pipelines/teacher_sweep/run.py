"""The teacher's sweet spot (Vats and Crandall 2021): which batch size and how many epochs make the best teacher?

    python -m pipelines.teacher_sweep.run [--scale smoke|cpu|paper] [--data NAME] [--data-root DIR] [--folder DIR]
                                          [--results FILE.md] [--dry-run]

One store per teacher; metrics come from the stores; students are trained from them. Finished parts are skipped.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kdcache
from kdcache.distill import DistillConfig, distill
from kdcache.dump import DumpConfig, dump_teacher
from kdcache.teacher_training import TeacherConfig, train_teacher
from pipelines.teacher_sweep.metrics import METRICS, rank_correlation, similarity_metrics
from pipelines.teacher_sweep.permuted import write_permuted
from pipelines.teacher_sweep.shrink import write_small

HERE = Path(__file__).parent
WITHIN = 0.02  # the selector looks at teachers this close to the best validation accuracy


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One table of grid.toml, with the place of its data and results."""

    dataset: str
    data_root: Path | None
    folder: Path
    rows: str
    val: str
    test: str
    teacher: Mapping[str, Any]
    batch_sizes: tuple[int, ...]
    epochs: tuple[int, ...]
    student: Mapping[str, Any]
    temperature: float
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One teacher: its place in the sweep, weights, store, and validation accuracy."""

    batch_size: int
    epochs: int
    store: str
    val_accuracy: float
    train_accuracy: float
    mean_doubt_of_label: float

    @property
    def name(self) -> str:
        """`bBATCH-eEPOCHS`."""
        return f"b{self.batch_size}-e{self.epochs}"


def load_sweeps(scale: str, only: str, *, data_root: Path | None, folder: Path) -> list[Sweep]:
    """The tables of one scale of grid.toml, or one of them."""
    tables = tomllib.loads((HERE / "grid.toml").read_text())[scale]
    made = []
    for name, table in tables.items():
        if only not in ("", name):
            continue
        if (small := table.pop("small", None)) is not None:
            data_root = write_small(name, folder / scale / name / "data.npz", data_root=data_root, **small)
        lists: dict[str, Any] = {key: tuple(table.pop(key)) for key in ("batch_sizes", "epochs", "seeds")}
        made.append(
            Sweep(
                dataset=table.pop("dataset", name), data_root=data_root, folder=folder / scale / name, **lists, **table
            )
        )
    return made


def trained_teacher(sweep: Sweep, batch_size: int) -> Path:
    """The run folder of the teachers of one batch size; trained unless it is there."""
    out = sweep.folder / f"teacher-b{batch_size}"
    train_teacher(
        TeacherConfig(
            dataset=sweep.dataset,
            data_root=sweep.data_root,
            split=sweep.rows,
            eval_split=sweep.val,
            epochs=max(sweep.epochs),
            batch_size=batch_size,
            lr=learning_rate(sweep.teacher, batch_size),
            keep_every=math.gcd(*sweep.epochs),
            eval_every=math.gcd(*sweep.epochs),
            schedule=sweep.teacher.get("schedule", "constant"),  # an early epoch is a teacher, not half a schedule
            out=str(out),
            resume=True,
            **{name: value for name, value in sweep.teacher.items() if name not in ("schedule", "lr", "lr_batch")},
        )
    )
    return out


def make_cells(sweep: Sweep) -> list[Cell]:
    """Train one teacher per batch size, and dump each of its kept epochs once."""
    cells = []
    for batch_size in sweep.batch_sizes:
        out = trained_teacher(sweep, batch_size)
        figures = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        val = {line["epoch"]: float(line["test_top1"]) for line in figures if "test_top1" in line}
        for epochs in sweep.epochs:
            dumped = dump_teacher(
                DumpConfig(
                    dataset=sweep.dataset,
                    data_root=sweep.data_root,
                    split=sweep.rows,
                    teacher=sweep.teacher["model"],
                    weights=str(out / "epochs" / f"epoch-{epochs:05d}.safetensors"),
                    topk="all",
                    out=str(sweep.folder / "stores" / f"b{batch_size}-e{epochs}.zarr"),
                    allow_weak_teacher=True,
                )
            )
            cells.append(
                Cell(
                    batch_size=batch_size,
                    epochs=epochs,
                    store=dumped.store,
                    val_accuracy=val[epochs],
                    train_accuracy=float(dumped.quality["top1"]),
                    mean_doubt_of_label=_mean_doubt(dumped.store),
                )
            )
    return cells


def learning_rate(teacher: Mapping[str, Any], batch_size: int) -> float:
    """The teacher's `lr` is that of batches of `lr_batch`; others have it times the root of their ratio."""
    return float(teacher["lr"]) * math.sqrt(batch_size / teacher.get("lr_batch", batch_size))


def _mean_doubt(store: str) -> float:
    """Mean of 1 - p_y at T=1: the eps of the label smoothing that is as unsure as the teacher."""
    opened = kdcache.open_store(store)
    doubt = sum(float((1 - targets.label_log_prob.exp()).sum()) for targets in opened.batches())
    return min(1.0, max(0.0, doubt / opened.num_rows))


def student_accuracy(
    sweep: Sweep, store: str, name: str, *, seed: int, method: str, options: Mapping[str, object] | None = None
) -> float:
    """Test accuracy (last epoch, in [0, 1]) of one student; trained unless it is there."""
    settings = dict(sweep.student)
    result = distill(
        DistillConfig(
            store=store,
            data_root=sweep.data_root,
            student=settings.pop("model"),
            method=method,
            temperature=None if kdcache.methods[method].default_temperature is None else sweep.temperature,
            options=options or {},
            seed=seed,
            eval_split=sweep.test,
            eval_every=settings["epochs"],
            out=str(sweep.folder / "students" / f"{name}-seed{seed}"),
            resume=True,
            **settings,
        )
    )
    return float(result.figures["accuracy"])


def hypothesis(sweep: Sweep, cell: Cell) -> dict[str, list[float]]:
    """Students of one teacher: its true opinion, a permuted one, kd-pt, and label smoothing as unsure as it is."""
    control = write_permuted(cell.store, sweep.folder / "stores" / f"{cell.name}-permuted.zarr", seed=0)
    arms: dict[str, tuple[str, str, dict[str, object]]] = {
        "true": (cell.store, "kd", {}),
        "permuted": (control, "kd", {}),
        "kd-pt": (cell.store, "kd-pt", {}),
        "ls": (cell.store, "ls", {"smoothing": cell.mean_doubt_of_label}),
    }
    return {
        arm: [
            student_accuracy(
                sweep,
                store,
                f"{cell.name}-kd" if arm == "true" else f"{cell.name}-{arm}",
                seed=seed,
                method=method,
                options=options,
            )
            for seed in sweep.seeds
        ]
        for arm, (store, method, options) in arms.items()
    }


def select(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The cheap selector: most class structure among the teachers close to the best validation accuracy."""
    best = max(row["val_accuracy"] for row in rows)
    return max((row for row in rows if row["val_accuracy"] >= best - WITHIN), key=lambda row: row["between_within"])


def sweep_rows(sweep: Sweep, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """One row per teacher: accuracies, metrics at the students' temperature, students' accuracies."""
    rows = []
    for cell in cells:
        metrics = similarity_metrics(kdcache.open_store(cell.store), temperature=sweep.temperature)
        students = [
            student_accuracy(sweep, cell.store, f"{cell.name}-kd", seed=seed, method="kd") for seed in sweep.seeds
        ]
        rows.append(
            {
                "name": cell.name,
                "batch_size": cell.batch_size,
                "epochs": cell.epochs,
                "val_accuracy": cell.val_accuracy,
                "train_accuracy": cell.train_accuracy,
                **metrics,
                "students": students,
            }
        )
    return rows


def report(sweep: Sweep, rows: Sequence[Mapping[str, Any]], tests: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Markdown: heat maps as tables, rank correlations, the selector's choice, the hypothesis test."""
    lines = [f"## {sweep.dataset}", ""]
    mean_student = {row["name"]: statistics.mean(row["students"]) for row in rows}
    shown = {"teacher, validation %": "val_accuracy", "teacher, its own rows %": "train_accuracy"}
    for title, key in {**shown, **{name: name for name in METRICS}}.items():
        scale = 100 if key.endswith("accuracy") else 1
        lines += _heat_map(title, sweep, {row["name"]: scale * row[key] for row in rows})
    lines += _heat_map("student, test %", sweep, {name: 100 * value for name, value in mean_student.items()})
    scores = [mean_student[row["name"]] for row in rows]
    lines += ["Rank correlation with the student's accuracy over the teachers:", ""]
    for key in ("val_accuracy", "train_accuracy", *METRICS):
        lines.append(f"- {key}: {rank_correlation([row[key] for row in rows], scores):+.2f}")
    chosen, best = select(rows), max(rows, key=lambda row: mean_student[row["name"]])
    lines += [
        "",
        f"Selector: {chosen['name']} (student {100 * mean_student[chosen['name']]:.1f} %); best teacher found: "
        f"{best['name']} ({100 * mean_student[best['name']]:.1f} %).",
        "",
        "| teacher | true | permuted | kd-pt | ls |",
        "|---|---|---|---|---|",
    ]
    for name, arms in tests.items():
        lines.append(
            f"| {name} | " + " | ".join(_mean_sd(arms[arm]) for arm in ("true", "permuted", "kd-pt", "ls")) + " |"
        )
    return "\n".join([*lines, ""])


def _heat_map(title: str, sweep: Sweep, value: Mapping[str, float]) -> list[str]:
    lines = [f"| {title}: batch size down, epochs across | " + " | ".join(map(str, sweep.epochs)) + " |"]
    lines.append("|---" * (len(sweep.epochs) + 1) + "|")
    for batch_size in sweep.batch_sizes:
        cells = [f"{value[f'b{batch_size}-e{epochs}']:.3g}" for epochs in sweep.epochs]
        lines.append(f"| {batch_size} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _mean_sd(scores: Sequence[float]) -> str:
    spread = f" +- {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{100 * statistics.mean(scores):.1f}{spread}"


def run_sweep(sweep: Sweep) -> str:
    """Everything of one data set; returns its part of the report and writes rows.json."""
    cells = make_cells(sweep)
    rows = sweep_rows(sweep, cells)
    by_name = {cell.name: cell for cell in cells}
    best_val = max(rows, key=lambda row: row["val_accuracy"])["name"]
    tested = dict.fromkeys([select(rows)["name"], best_val, cells[-1].name])
    tests = {name: hypothesis(sweep, by_name[name]) for name in tested}
    (sweep.folder / "rows.json").write_text(json.dumps({"teachers": rows, "tests": tests}, indent=1))
    return report(sweep, rows, tests)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="cpu", choices=("smoke", "cpu", "paper"))
    parser.add_argument("--data", default="", help="one data set of the scale; otherwise all")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "teacher_sweep")
    parser.add_argument("--results", type=Path, default=None, help="write the report here, as Markdown")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    sweeps = load_sweeps(arguments.scale, arguments.data, data_root=arguments.data_root, folder=arguments.folder)
    for sweep in sweeps:
        teachers = len(sweep.batch_sizes) * len(sweep.epochs)
        students = len(sweep.seeds) * (teachers + 9)
        print(f"{sweep.dataset}: {len(sweep.batch_sizes)} teacher runs, {teachers} stores, {students} students at most")
    if arguments.dry_run:
        return
    started = time.monotonic()
    text = "\n".join(run_sweep(sweep) for sweep in sweeps)
    print(text)
    if arguments.results is not None:
        minutes = (time.monotonic() - started) / 60
        arguments.results.write_text(f"{text}\nThis call: {minutes:.0f} minutes.\n")


if __name__ == "__main__":
    main()
