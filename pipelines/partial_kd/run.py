"""Partial KD (Tang et al. 2020): one teacher, one store, every method and seed as a student from it.

    python -m pipelines.partial_kd.run [--data cifar100|imagenet|ptb] [--scale smoke|cpu|paper] [--data-root DIR]
        [--workers N | --dask URL] [--results DIR] [--dry-run]

Settings are chosen by trials on validation rows before the first test row is read. Finished cells are skipped, so the
same command continues after a kill. Everything goes to runs/partial_kd/; tables and plots, with --results, to a folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kdcache.parallel import GridResult, run_cells, run_recipe
from pipelines.partial_kd.cells import chosen_settings, student_cells, teacher_cells, trial_cells
from pipelines.partial_kd.cost import cost_of
from pipelines.partial_kd.recipe import HERE, MAIN, Recipe, load_recipe
from pipelines.partial_kd.results import markdown, write_results


def run(recipe: Recipe, *, workers: int = 1, dask: str | None = None) -> GridResult:
    """Every cell of a recipe: the main teacher, its store, trials, students with the settings that won; other teachers.

    Args:
        recipe: what to run.
        workers: processes on this machine.
        dask: address of a Dask scheduler instead.

    Returns:
        All results. A method with a failed trial has no students; the failure is among the results.
    """
    others = [teacher for teacher in recipe.teachers if teacher != MAIN]
    teacher = [*teacher_cells(recipe, [MAIN])]
    first = [*teacher, *trial_cells(recipe)]
    found = run_cells(first, folder=recipe.folder, workers=workers, dask=dask)
    if any(cell.name not in found.results for cell in teacher):
        return found  # a second try in this call would fail as the first
    chosen = chosen_settings(recipe, found.results)
    students = student_cells(recipe, chosen, [MAIN])
    more = [*teacher_cells(recipe, others), *student_cells(recipe, chosen, others)]
    return run_cells([*first, *students, *more], folder=recipe.folder, workers=workers, dask=dask)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    grids = sorted(path.stem for path in HERE.glob("*.toml") if path.stem != "synthetic")
    parser.add_argument("--data", default="cifar100", choices=grids)
    parser.add_argument("--scale", default="cpu", choices=("smoke", "cpu", "paper"))
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "partial_kd")
    parser.add_argument("--teacher-weights", type=Path, default=None, help="start from these instead of training")
    parser.add_argument("--workers", type=int, default=1, help="cells at a time")
    parser.add_argument("--dask", default=None, metavar="URL", help="run the cells on this Dask cluster")
    parser.add_argument("--results", type=Path, default=None, metavar="DIR", help="write tables and plots here")
    parser.add_argument("--dry-run", action="store_true", help="say what it would cost; run nothing")
    arguments = parser.parse_args()
    run_recipe(lambda: _carry_out(arguments))


def _carry_out(arguments: argparse.Namespace) -> int:
    recipe = load_recipe(
        arguments.data,
        arguments.scale,
        data_root=arguments.data_root,
        folder=arguments.folder,
        weights=arguments.teacher_weights,
    )
    if arguments.dry_run:
        print(cost_of(recipe))
        return 0
    found = run(recipe, workers=arguments.workers, dask=arguments.dask)
    if found.results:
        print(markdown(recipe, found))
    if arguments.results is not None:
        write_results(recipe, found, arguments.results)
    print(found.summary(), file=sys.stderr)
    return found.exit_code


if __name__ == "__main__":
    main()
