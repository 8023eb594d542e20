"""Partial KD on synthetic classes: accuracy of every method against the correlation of the classes.

    python -m pipelines.partial_kd.synthetic [--scale smoke|cpu|paper] [--folder DIR] [--workers N | --dask URL]
        [--results DIR] [--dry-run]

One data set, one teacher and one store per correlation; every student comes from the store. Finished cells are skipped,
so the same command continues after a kill.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kdcache.parallel import GridResult, run_recipe
from pipelines.partial_kd.cost import cost_of
from pipelines.partial_kd.recipe import HERE, Recipe, load_recipe
from pipelines.partial_kd.run import run
from pipelines.partial_kd.synthetic_data import data_file, write_card, write_data
from pipelines.partial_kd.synthetic_results import tables, write_results

SIGMA, FOLDS, SEED = 5.0, 1, 0  # a teacher of 94 % without correlation and 63 % with most; no student above it


def load_recipes(scale: str, folder: Path) -> dict[float, Recipe]:
    """One recipe for every correlation of a scale of synthetic.toml; their cards are written, their data are not.

    Args:
        scale: of the file.
        folder: everything goes below it, each correlation in a folder of its own.
    """
    made = {}
    share = _scale(scale)["share"]
    for tau2 in _scale(scale)["tau2"]:
        place = (folder / "synthetic" / scale / f"tau2-{tau2:g}").resolve()
        loaded = load_recipe("synthetic", scale, data_root=data_file(place, share), folder=place)
        made[float(tau2)] = replace(loaded, folder=place, dataset=str(write_card(place, tau2)))
    return made


def run_all(
    recipes: Mapping[float, Recipe], *, workers: int = 1, dask: str | None = None
) -> dict[float, tuple[Recipe, GridResult]]:
    """Data, teacher, store, trials and students of every correlation, one after the other.

    Args:
        recipes: by correlation; workers, dask: as `run` takes them.
    """
    done = {}
    for tau2, recipe in recipes.items():
        share = _scale(recipe.scale)["share"]
        write_data(recipe.folder, tau2, sigma=SIGMA, folds=FOLDS, seed=SEED, share=share)
        done[tau2] = (recipe, run(recipe, workers=workers, dask=dask))
    return dict(sorted(done.items()))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="cpu", choices=("smoke", "cpu", "paper"))
    parser.add_argument("--folder", type=Path, default=Path("runs") / "partial_kd")
    parser.add_argument("--workers", type=int, default=1, help="cells at a time")
    parser.add_argument("--dask", default=None, metavar="URL", help="run the cells on this Dask cluster")
    parser.add_argument("--results", type=Path, default=None, metavar="DIR", help="write tables and plots here")
    parser.add_argument("--dry-run", action="store_true", help="say what it would cost; run nothing")
    arguments = parser.parse_args()
    run_recipe(lambda: _carry_out(arguments))


def _carry_out(arguments: argparse.Namespace) -> int:
    if arguments.dry_run:
        with TemporaryDirectory() as nowhere:  # cards are written
            recipes = load_recipes(arguments.scale, Path(nowhere))
            print(f"{len(recipes)} correlations, each:\n{cost_of(next(iter(recipes.values())))}")
        return 0
    recipes = load_recipes(arguments.scale, arguments.folder)
    done = run_all(recipes, workers=arguments.workers, dask=arguments.dask)
    print(tables(done))
    if arguments.results is not None:
        write_results(done, arguments.results)
    for tau2, (_, found) in done.items():
        print(f"tau^2 = {tau2:g}: {found.summary()}", file=sys.stderr)
    return max(found.exit_code for _, found in done.values())


def _scale(name: str) -> dict[str, Any]:
    return dict(tomllib.loads((HERE / "synthetic.toml").read_text())[name])


if __name__ == "__main__":
    main()
