"""Partial KD (Tang et al. 2020): one teacher, one store, every method and seed as a student from it.

    python -m pipelines.partial_kd.run [--data cifar100|ptb] [--scale smoke|cpu|paper] [--data-root DIR] [--dry-run]

Finished parts are skipped, so the same command continues after a kill. Results go to runs/partial_kd/ and, with
--table FILE, as Markdown to a file.
"""

from __future__ import annotations

import argparse
import subprocess
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.distill import DistillConfig, distill
from kdcache.dump import DumpConfig, dump_teacher
from kdcache.dump_estimate import estimate_dump
from kdcache.report import compare_runs, text_table
from kdcache.teacher_training import TeacherConfig, train_teacher

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One grid at one scale.

    Attributes:
        dataset: card name; data_root: where its files are.
        folder: where teacher, store and students go.
        teacher, student: settings of `TeacherConfig` and `DistillConfig`.
        cells: name -> settings beside the student's own: a method under its name, or a variant of one.
        seeds: every cell is run for each, unless it names `seeds` of its own.
        topk: classes stored per row; split: the rows students train on; dump: other settings of `DumpConfig`.
    """

    dataset: str
    data_root: Path | None
    folder: Path
    teacher: Mapping[str, Any]
    student: Mapping[str, Any]
    cells: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    topk: int
    split: str
    dump: Mapping[str, Any]


def load_recipe(data: str, scale: str, *, data_root: Path | None, folder: Path) -> Recipe:
    """Read one scale of DATA.toml."""
    grid = tomllib.loads((HERE / f"{data}.toml").read_text())
    if scale not in grid:
        raise SystemExit(f"{data}.toml has no scale {scale!r}")
    chosen = grid[scale]
    return Recipe(
        dataset=grid["dataset"],
        data_root=data_root,
        folder=folder / data / scale,
        teacher=chosen["teacher"],
        student=chosen["student"],
        cells={**{method: {"method": method} for method in chosen["methods"]}, **chosen.get("variants", {})},
        seeds=tuple(chosen["seeds"]),
        topk=chosen["topk"],
        split=chosen["split"],
        dump=chosen.get("dump", {}),
    )


def trained_teacher(recipe: Recipe, weights: Path | None = None) -> Path:
    """The teacher's weights: those given, else trained unless they are there."""
    if weights is not None:
        return weights
    out = recipe.folder / "teacher"
    settings = TeacherConfig(
        dataset=recipe.dataset, data_root=recipe.data_root, out=str(out), resume=True, **recipe.teacher
    )
    train_teacher(settings)
    return out / "last.safetensors"


def dump_settings(recipe: Recipe, weights: Path) -> DumpConfig:
    """The one dump of the recipe."""
    return DumpConfig(
        dataset=recipe.dataset,
        data_root=recipe.data_root,
        teacher=recipe.teacher["model"],
        weights=str(weights),
        topk=recipe.topk,
        split=recipe.split,
        out=str(recipe.folder / "store.zarr"),
        **recipe.dump,
    )


def trained_students(recipe: Recipe, store: str) -> list[Path]:
    """The run folders of every cell, seeds outermost so that an early stop leaves whole comparisons."""
    folders = []
    seeds_of = {name: tuple(cell.get("seeds", recipe.seeds)) for name, cell in recipe.cells.items()}
    for seed in sorted({seed for seeds in seeds_of.values() for seed in seeds}):
        for name, cell in recipe.cells.items():
            if seed not in seeds_of[name]:
                continue
            out = recipe.folder / "students" / f"{name}-seed{seed}"
            settings = {**recipe.student, **cell}
            settings.pop("seeds", None)
            config = DistillConfig(
                store=store,
                data_root=recipe.data_root,
                student=settings.pop("model"),
                seed=seed,
                out=str(out),
                resume=True,
                **settings,
            )
            distill(config)
            folders.append(out)
    return folders


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar100", choices=sorted(path.stem for path in HERE.glob("*.toml")))
    parser.add_argument("--scale", default="cpu", choices=("smoke", "cpu", "paper"))
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "partial_kd")
    parser.add_argument("--teacher-weights", type=Path, default=None, help="start from these instead of training")
    parser.add_argument("--table", type=Path, default=None)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.data, arguments.scale, data_root=arguments.data_root, folder=arguments.folder)
    if arguments.dry_run:
        students = sum(len(cell.get("seeds", recipe.seeds)) for cell in recipe.cells.values())
        print(f"{recipe.teacher} -> top {recipe.topk} -> {students} students: {recipe.student}")
        return
    started = time.monotonic()
    weights = trained_teacher(recipe, arguments.teacher_weights)
    print(estimate_dump(dump_settings(recipe, weights)))
    dumped = dump_teacher(dump_settings(recipe, weights))
    folders = trained_students(recipe, dumped.store)
    table = text_table(compare_runs(folders))
    print(table)
    if arguments.table is not None:
        commit = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, check=False).stdout
        minutes = (time.monotonic() - started) / 60
        quality = f"teacher top-1 {dumped.quality['top1']:.4f} on the transfer set"
        arguments.table.write_text(
            f"```\n{table}\n```\n\nCommit {commit.strip()}, this call {minutes:.0f} min; {quality}.\n"
        )


if __name__ == "__main__":
    main()
