"""Smoothed and over-confident teachers (Tang et al. 2020): what their stores still hold, and what their students learn.

    python -m pipelines.partial_kd.teachers [--scale smoke|cpu] [--data-root DIR] [--folder DIR]
        [--workers N | --dask URL] [--results DIR] [--dry-run]

Teachers that differ in one thing, each dumped once; settings chosen per teacher on validation rows before a test row is
read. Finished cells are skipped, so the same command continues after a kill.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from kdcache.parallel import GridResult, run_cells, run_recipe
from pipelines.partial_kd.teacher_cells import (
    chosen_settings,
    student_cells,
    sweep_cells,
    teacher_cells,
    trial_cells,
)
from pipelines.partial_kd.teacher_report import markdown, write_results
from pipelines.partial_kd.teacher_study import Study, load_study


def run(study: Study, *, workers: int = 1, dask: str | None = None) -> GridResult:
    """Every cell of a study: teachers, stores and measures; then method by method trials, and students with the
    settings that won; then the sweeps.

    Args:
        study: what to run.
        workers: processes on this machine.
        dask: address of a Dask scheduler instead.

    Returns:
        All results. An arm with a failed trial has no students, and without all teachers nobody has; the failure is
        among the results.
    """
    cells = list(teacher_cells(study))
    found = run_cells(cells, folder=study.folder, workers=workers, dask=dask)
    if not found.exit_code:
        for method in study.order:  # an early stop leaves whole methods
            cells += trial_cells(study, [method])
            found = run_cells(cells, folder=study.folder, workers=workers, dask=dask)
            cells += student_cells(study, chosen_settings(study, found.results), [method])
        cells += sweep_cells(study, chosen_settings(study, found.results))
        found = run_cells(cells, folder=study.folder, workers=workers, dask=dask)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="cpu", choices=("smoke", "cpu"))
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "partial_kd")
    parser.add_argument("--workers", type=int, default=1, help="cells at a time")
    parser.add_argument("--dask", default=None, metavar="URL", help="run the cells on this Dask cluster")
    parser.add_argument("--results", type=Path, default=None, metavar="DIR", help="write tables and plots here")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run; run nothing")
    arguments = parser.parse_args()
    run_recipe(lambda: _carry_out(arguments))


def _carry_out(arguments: argparse.Namespace) -> int:
    study = load_study(arguments.scale, data_root=arguments.data_root, folder=arguments.folder)
    if arguments.dry_run:
        print(plan(study))
        return 0
    found = run(study, workers=arguments.workers, dask=arguments.dask)
    print(markdown(study, found))
    if arguments.results is not None:
        write_results(study, found, arguments.results)
    print(found.summary(), file=sys.stderr)
    return found.exit_code


def plan(study: Study) -> str:
    """How many cells of each kind there are, and how many rows are trained on."""
    cells = [*teacher_cells(study), *trial_cells(study, study.order)]
    kinds = Counter(cell.name.split("-")[0] for cell in cells)
    swept = sum(len(arm.settings) if arm.sweep else 1 for arm in study.arms) * len(study.seeds)
    kinds["student"] = swept
    rows = {part: stop - start for part, (start, stop) in study.parts.items()}
    runs = [arm for arm in study.arms for _ in range(len(arm.settings) * len(study.trial_seeds))]
    runs += [arm for arm in study.arms for _ in range((len(arm.settings) if arm.sweep else 1) * len(study.seeds))]
    passed = sum(rows[arm.part] for arm in runs) * study.student["epochs"]
    return "\n".join(
        (
            "cells     " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
            f"teachers  {len(study.trained) * len(study.seeds)} trained, {study.common['epochs']} epochs of "
            f"{study.common['split']} each; {len(study.teachers) * len(study.seeds)} dumped, once each",
            f"students  {passed:,} rows in all their epochs",
        )
    )


if __name__ == "__main__":
    main()
