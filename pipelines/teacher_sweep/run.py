"""The teacher's sweet spot (Vats and Crandall 2021): which batch size and how many epochs make the best teacher?

    python -m pipelines.teacher_sweep.run [--scale smoke|cpu|paper] [--data NAME] [--data-root DIR] [--folder DIR]
        [--workers N | --dask URL] [--results DIR] [--dry-run]

One store per teacher; metrics come from the stores; students are trained from them. Finished cells are skipped, so the
same command continues after a kill.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from kdcache.parallel import GridResult, run_cells, run_recipe
from pipelines.teacher_sweep.cells import chosen_lr, student_cells, teacher_cells, trial_cells
from pipelines.teacher_sweep.cost import cost_of
from pipelines.teacher_sweep.report import report, write_results
from pipelines.teacher_sweep.selector import rows_of
from pipelines.teacher_sweep.sweep import HERE, Sweep, load_sweeps


def run(sweep: Sweep, *, workers: int = 1, dask: str | None = None) -> GridResult:
    """Every cell of a sweep: teachers, stores and metrics, then trials of the rate, then students.

    Args:
        sweep: what to run.
        workers: processes on this machine.
        dask: address of a Dask scheduler instead.

    Returns:
        All results; with failures among teachers, stores or trials, those up to there.
    """
    cells = list(teacher_cells(sweep))
    found = run_cells(cells, folder=sweep.folder, workers=workers, dask=dask)
    if found.failed:
        return found
    rows = rows_of(sweep, found.results)
    cells += trial_cells(sweep, rows)
    found = run_cells(cells, folder=sweep.folder, workers=workers, dask=dask)
    if found.failed:
        return found
    cells += student_cells(sweep, rows, chosen_lr(sweep, found.results))
    return run_cells(cells, folder=sweep.folder, workers=workers, dask=dask)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="cpu", choices=("smoke", "cpu", "paper"))
    parser.add_argument("--data", default="", help="one data set of the scale; otherwise all")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "teacher_sweep")
    parser.add_argument("--workers", type=int, default=1, help="cells at a time")
    parser.add_argument("--dask", default=None, metavar="URL", help="run the cells on this Dask cluster")
    parser.add_argument("--results", type=Path, default=None, metavar="DIR", help="write tables and heat maps here")
    parser.add_argument("--dry-run", action="store_true", help="say what it would cost; run nothing")
    arguments = parser.parse_args()
    run_recipe(lambda: _carry_out(arguments))


def _carry_out(arguments: argparse.Namespace) -> int:
    sweeps = load_sweeps(arguments.scale, arguments.data, data_root=arguments.data_root, folder=arguments.folder)
    if arguments.dry_run:
        print("\n".join(str(cost_of(sweep)) for sweep in sweeps))
        return 0
    code = 0
    for sweep in sweeps:
        found = run(sweep, workers=arguments.workers, dask=arguments.dask)
        print(found.summary(), file=sys.stderr)
        code = max(code, found.exit_code)
        if not {*found.failed, *found.not_run} & needed(sweep):
            print(report(sweep, found))
            if arguments.results is not None:
                write_results(sweep, found, arguments.results, circumstances())
    return code


def needed(sweep: Sweep) -> set[str]:
    """Cells without which there is nothing to report."""
    names = {f"trial-lr{lr:g}" for lr in sweep.student_lr} | {f"teacher-b{size}" for size in sweep.batch_sizes}
    return names | {f"{what}-{one.name}" for one in sweep.teachers for what in ("store", "metrics")} | {"data"}


def circumstances() -> dict[str, str]:
    """Commit and machine, for a document."""
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return {
        "commit": asked.stdout.strip() or "not known",
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "cores": str(os.cpu_count()),
        "machine": platform.processor() or platform.machine(),
    }


if __name__ == "__main__":
    main()
