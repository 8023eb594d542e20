"""What `make demo` runs: the whole way from a teacher to a table of students.

    python -m pipelines.smoke [--workers N] [--dask URL] [--folder DIR]

Store and table come from the real command line, the students from a grid of cells (docs/parallel.md). About a minute on
2 cores; a second run finds the store and the finished students and takes seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcache.distill import DistillConfig
from kdcache.distill.grid import distill_grid
from kdcache.parallel import Cell, run_cells, run_recipe

FOLDER = Path("runs") / "smoke"
METHODS = ("ce", "kd", "kd-topk", "kd-pt", "kd-sim", "kd-pt+sim")
SEEDS = (0, 1, 2)
EPOCHS = 15  # half the card's: the methods' order is the same (docs/log.md), and the demo takes a minute
# As it can be typed here: the console script beside this interpreter, which need not be on PATH.
KDCACHE = os.path.relpath(Path(sys.executable).parent / "kdcache")


def kdcache(*words: str, shown: bool = True) -> str:
    """Run one kdcache command; what it prints goes to the terminal, or is returned when not `shown`.

    Raises:
        SystemExit: the command failed; it has said why.
    """
    if shown:
        print(f"\n$ kdcache {shlex.join(words)}", flush=True)
    stdout = None if shown else subprocess.PIPE
    done = subprocess.run([sys.executable, "-m", "kdcache", *words], stdout=stdout, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    return done.stdout or ""


def train_students(arguments: Mapping[str, Any]) -> dict[str, float]:
    """A cell: a student for each method from one seed; their accuracies."""
    config = DistillConfig(
        store=arguments["store"],
        out=arguments["out"],
        epochs=arguments["epochs"],
        eval_every=arguments["epochs"],
        resume=True,
    )
    runs = distill_grid(config, methods=arguments["methods"], seeds=[arguments["seed"]])
    return {run.figures["method"]: run.figures["accuracy"] for run in runs}


def student_cells(store: Path, students: Path) -> list[Cell]:
    """A cell for each seed; another store means other students."""
    manifest = json.loads(kdcache("info", str(store), "--json", shown=False))
    shared = {"store": str(store), "root_digest": manifest["root_digest"], "out": str(students)}
    budget = {"methods": METHODS, "epochs": EPOCHS}
    return [
        Cell(name=f"seed{seed}", run=train_students, arguments={**shared, **budget, "seed": seed}) for seed in SEEDS
    ]


def main() -> int:
    """Dump, look, verify, distil, and say what came of it; 1 when a cell failed."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.smoke", description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1, help="processes that train students; 1: this one")
    parser.add_argument("--dask", default="", metavar="URL", help="a Dask scheduler whose workers train them instead")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where store and students go (%(default)s)")
    arguments = parser.parse_args()
    started = time.monotonic()
    folder = arguments.folder.resolve() if arguments.dask else arguments.folder
    store, students = folder / "store.zarr", folder / "students"
    kdcache("dump-teacher", "--out", str(store))
    kdcache("info", str(store))
    kdcache("verify", "--deep", str(store))
    grid = run_cells(student_cells(store, students), folder=students, workers=arguments.workers, dask=arguments.dask)
    print(f"\n{grid.summary()}", flush=True)
    if grid.exit_code:
        return grid.exit_code
    kdcache("report", str(students))
    info = json.loads(kdcache("info", str(store), "--json", shown=False))
    print(closing_words(info, store, students, time.monotonic() - started))
    return 0


def closing_words(info: Mapping[str, Any], store: Path, students: Path, seconds: float) -> str:
    """The store's size against full logits, where things are, and what to type next.

    Args:
        info: the document of `kdcache info --json`.
        store, students: where they are.
        seconds: wall time of the whole run.
    """
    stored, full = info["bytes_on_disk"], info["full_logits_bytes"]
    return f"""
Store      {stored:,} bytes; the teacher's logits in float32 would be {full:,} ({full / stored:.1f} times as much)
Results    {store} (store), {students}{os.sep} (students: result.json, metrics.jsonl, weights)
Time       {seconds:.0f} s
Next       {KDCACHE} distill --store {store} --method kd-topk --topk 5 --temperature 2
           {KDCACHE} report {students}
           {KDCACHE} methods; {KDCACHE} datasets; docs/quickstart.md
"""


if __name__ == "__main__":
    run_recipe(main)
