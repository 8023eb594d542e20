"""Partial KD on synthetic classes: accuracy of every method against the correlation of the classes.

    python -m pipelines.partial_kd.synthetic [--scale smoke|cpu|paper] [--folder DIR] [--results FILE.md] [--dry-run]

One data set, one teacher and one store per correlation; every student comes from the store. Finished parts are skipped,
so the same command continues after a kill.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kdcache
from kdcache.distill import DistillConfig, distill
from kdcache.dump import DumpConfig, dump_teacher
from kdcache.teacher_training import TeacherConfig, train_teacher
from pipelines.partial_kd.synthetic_data import CLASSES, write_data

HERE = Path(__file__).parent
SIGMA, FOLDS = 5.0, 1  # a teacher of 94 % without correlation and 63 % with most; ce students of 82 and 47 %
TOPK_USED = 5  # the size of a group
TUNING_SEED = 100


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One scale of synthetic.toml: correlations, seeds, settings of teacher and student, methods, values to tune."""

    tau2: tuple[float, ...]
    seeds: tuple[int, ...]
    share: float
    teacher: Mapping[str, Any]
    student: Mapping[str, Any]
    methods: tuple[str, ...]
    tuning: Mapping[str, Sequence[float]]

    def trials(self, method: str) -> list[dict[str, float]]:
        """The settings tried for a method: lr with T; for `ls` lr with smoothing, for `ce` lr with weight decay."""
        names = ("lr", {"ce": "weight_decay", "ls": "smoothing"}.get(method, "temperature"))
        return [dict(zip(names, values, strict=True)) for values in itertools.product(*(self.tuning[n] for n in names))]


@dataclass(frozen=True, kw_only=True)
class World:
    """What exists for one correlation: card, data, store, the teacher's test accuracy and its cost in seconds."""

    tau2: float
    card: Path
    folder: Path
    store: str
    teacher_accuracy: float
    dump_seconds: float


def load_grid(scale: str) -> Grid:
    """Read one scale of synthetic.toml."""
    chosen = tomllib.loads((HERE / "synthetic.toml").read_text())[scale]
    lists: dict[str, Any] = {name: tuple(chosen.pop(name)) for name in ("tau2", "seeds", "methods")}
    return Grid(**lists, **chosen)


def make_world(grid: Grid, tau2: float, folder: Path) -> World:
    """Data, teacher and store of one correlation; each is made once."""
    card = write_data(folder, tau2, sigma=SIGMA, folds=FOLDS, seed=0, share=grid.share)
    data_root = folder / "data.npz"
    epochs = grid.teacher["epochs"]
    trained = train_teacher(
        TeacherConfig(
            dataset=str(card),
            data_root=data_root,
            split="teacher",
            eval_split="test",
            batch_size=100,
            eval_every=epochs,
            out=str(folder / "teacher"),
            resume=True,
            **grid.teacher,
        )
    )
    dumped = dump_teacher(
        DumpConfig(
            dataset=str(card),
            data_root=data_root,
            split="train",
            teacher=grid.teacher["model"],
            weights=str(folder / "teacher" / "last.safetensors"),
            topk="all",
            out=str(folder / "store.zarr"),
            allow_weak_teacher=grid.share < 1,
        )
    )
    return World(
        tau2=tau2,
        card=card,
        folder=folder,
        store=dumped.store,
        teacher_accuracy=float(trained.figures["accuracy"]),
        dump_seconds=dumped.seconds,
    )


def accuracy(
    world: World, grid: Grid, method: str, setting: Mapping[str, float], *, seed: int, eval_split: str
) -> float:
    """Test (or validation) accuracy of the last epoch of one student, in [0, 1]; trained unless it is there."""
    words = "-".join(f"{name}{value:g}" for name, value in sorted(setting.items()))
    out = world.folder / "students" / f"{method}-{words}-{eval_split}-seed{seed}"
    settings: dict[str, Any] = {"weight_decay": 0.001, **grid.student, **setting}
    options = {name: settings.pop(name) for name in ("smoothing",) if name in settings}
    result = distill(
        DistillConfig(
            store=world.store,
            dataset=str(world.card),
            data_root=world.folder / "data.npz",
            student=settings.pop("model"),
            method=method,
            topk=TOPK_USED if method == "kd-topk" else None,
            options=options,
            seed=seed,
            eval_split=eval_split,
            eval_every=grid.student["epochs"],
            out=str(out),
            resume=True,
            **settings,
        )
    )
    return float(result.figures["accuracy"])


def best_setting(world: World, grid: Grid, method: str) -> dict[str, float]:
    """The trial with the best validation accuracy; a diverged student counts as 0."""
    scored = [(accuracy_or_zero(world, grid, method, trial), -i, trial) for i, trial in enumerate(grid.trials(method))]
    return max(scored)[2]


def accuracy_or_zero(world: World, grid: Grid, method: str, trial: Mapping[str, float]) -> float:
    """Validation accuracy of one trial; 0 when its loss became NaN."""
    try:
        return accuracy(world, grid, method, trial, seed=TUNING_SEED, eval_split="val")
    except kdcache.errors.NumericError:
        return 0.0


def results(grid: Grid, folder: Path) -> Iterator[dict[str, Any]]:
    """One row per correlation and method: setting, test accuracies by seed, and what the teacher cost."""
    for tau2 in grid.tau2:
        world = make_world(grid, tau2, folder / f"tau2-{tau2:g}")
        for method in grid.methods:
            setting = best_setting(world, grid, method)
            scores = [accuracy(world, grid, method, setting, seed=seed, eval_split="test") for seed in grid.seeds]
            yield {
                "tau2": tau2,
                "method": method,
                "setting": setting,
                "accuracy": scores,
                "teacher": world.teacher_accuracy,
                "dump_seconds": world.dump_seconds,
            }


def table(rows: Sequence[Mapping[str, Any]], grid: Grid) -> str:
    """Markdown: mean and standard deviation over seeds in percent, methods down, correlations across."""
    cell = {(row["method"], row["tau2"]): row for row in rows}
    lines = ["| method | " + " | ".join(f"tau^2 = {value:g}" for value in grid.tau2) + " |"]
    lines.append("|---" * (len(grid.tau2) + 1) + "|")
    teachers = [f"{100 * cell[grid.methods[0], value]['teacher']:.1f}" for value in grid.tau2]
    lines.append("| teacher | " + " | ".join(teachers) + " |")
    for method in grid.methods:
        shown = [_mean_sd([100 * score for score in cell[method, value]["accuracy"]]) for value in grid.tau2]
        lines.append(f"| {method} | " + " | ".join(shown) + " |")
    gains = ["", "Gain over `ce`, same seeds, in points (95 % t-interval):", "", lines[0], lines[1]]
    for method in grid.methods:
        if method == "ce":
            continue
        pairs = [zip(cell[method, v]["accuracy"], cell["ce", v]["accuracy"], strict=True) for v in grid.tau2]
        gains.append(
            f"| {method} | " + " | ".join(_interval([100 * (a - b) for a, b in pair]) for pair in pairs) + " |"
        )
    return "\n".join([*lines, *gains])


def _mean_sd(values: Sequence[float]) -> str:
    spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _interval(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.1f}"
    quantile = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(values), 2.57)
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="cpu", choices=("smoke", "cpu", "paper"))
    parser.add_argument("--folder", type=Path, default=Path("runs") / "partial_kd" / "synthetic")
    parser.add_argument("--results", type=Path, default=None, help="write the table here, as Markdown")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    grid = load_grid(arguments.scale)
    students = len(grid.tau2) * sum(len(grid.trials(method)) + len(grid.seeds) for method in grid.methods)
    print(f"{len(grid.tau2)} teachers {grid.teacher}, {students} students {grid.student}, {CLASSES} classes")
    if arguments.dry_run:
        return
    started = time.monotonic()
    rows = list(results(grid, arguments.folder / arguments.scale))
    (arguments.folder / arguments.scale / "rows.json").write_text(json.dumps(rows, indent=1))
    text = table(rows, grid)
    print(text)
    dumps = sum(row["dump_seconds"] for row in rows if row["method"] == grid.methods[0])
    print(
        f"\nteacher asked once per correlation: {dumps:.1f} s; {students} students would have asked it again each epoch"
    )
    if arguments.results is not None:
        minutes = (time.monotonic() - started) / 60
        arguments.results.write_text(f"{text}\n\nThis call: {minutes:.0f} minutes.\n")


if __name__ == "__main__":
    main()
