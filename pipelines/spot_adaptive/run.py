"""Spot-adaptive distillation (Song et al. 2022) from one store: does letting a policy choose where to distil pay?

    python -m pipelines.spot_adaptive.run [--scale smoke|cpu|paper] [--data-root DIR] [--folder DIR] [--live-teacher]
                                          [--seeds S,S] [--workers N | --dask URL] [--results DIR]
                                          [--finished | --dry-run]

The teacher is trained and dumped once, with its features; students of every method and control are trained from the
store. Finished cells are skipped, so the same command continues after a kill.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcache.parallel import run_cells, run_recipe
from pipelines.spot_adaptive.cost import cost_lines
from pipelines.spot_adaptive.recipe import load_recipe
from pipelines.spot_adaptive.report import document, write_plots
from pipelines.spot_adaptive.training import OUTSIDE


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="cpu", choices=("smoke", "cpu", "paper"))
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "spot_adaptive")
    parser.add_argument("--live-teacher", action="store_true", help=f"also the grid's live methods; {OUTSIDE}")
    parser.add_argument("--seeds", type=_numbers, default=(), metavar="S,S", help="other seeds than the grid's")
    parser.add_argument("--workers", type=int, default=1, help="cells at a time")
    parser.add_argument("--dask", default=None, metavar="URL", help="run the cells on this Dask cluster")
    parser.add_argument("--results", type=Path, default=None, metavar="DIR", help="write tables and plots here")
    parser.add_argument("--finished", action="store_true", help="tables of what is finished; run nothing")
    parser.add_argument("--dry-run", action="store_true", help="say what it would cost; run nothing")
    arguments = parser.parse_args()
    run_recipe(lambda: _carry_out(arguments))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _carry_out(arguments: argparse.Namespace) -> int:
    recipe = load_recipe(
        arguments.scale,
        data_root=arguments.data_root,
        folder=arguments.folder,
        seeds=arguments.seeds,
        write_data=not arguments.dry_run,
    )
    if arguments.dry_run:
        print("\n".join(cost_lines(recipe, live=arguments.live_teacher)))
        return 0
    if arguments.finished:
        _show(recipe.finished(), arguments.results)
        return 0
    found = run_cells(
        list(recipe.cells(live=arguments.live_teacher)),
        folder=recipe.folder,
        workers=arguments.workers,
        dask=arguments.dask,
    )
    _show(found.results, arguments.results)
    print(found.summary(), file=sys.stderr)
    return found.exit_code


def _show(results: Mapping[str, Mapping[str, Any]], folder: Path | None) -> None:
    print(document(results))
    if folder is not None:
        write_plots(results, folder)


if __name__ == "__main__":
    main()
