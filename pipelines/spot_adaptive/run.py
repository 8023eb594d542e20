"""Spot-adaptive distillation (Song et al. 2022) from one store: does letting a policy choose where to distil pay?

    python -m pipelines.spot_adaptive.run [--scale smoke|cpu|paper] [--data-root DIR] [--folder DIR] [--live-teacher]
                                          [--results FILE.md] [--dry-run]

The teacher is trained and dumped once, with its features; students of every method and control are trained from the
store. Finished parts are skipped, so the same command continues after a kill.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.spot_adaptive.recipe import load_recipe, run_dump, run_student, run_teacher
from pipelines.spot_adaptive.training import OUTSIDE


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="cpu", choices=("smoke", "cpu", "paper"))
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "spot_adaptive")
    parser.add_argument("--live-teacher", action="store_true", help=f"also the grid's live methods; {OUTSIDE}")
    parser.add_argument("--results", type=Path, default=None, help="write tables here, as Markdown, plots beside it")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    root = "" if arguments.data_root is None else str(arguments.data_root)
    shared = {"scale": arguments.scale, "data_root": root, "folder": str(arguments.folder)}
    recipe = load_recipe(arguments.scale, data_root=arguments.data_root, folder=arguments.folder)
    print(run_teacher(shared))
    print(run_dump(shared))
    results: list[dict[str, Any]] = []
    for name, config in recipe.students(live=arguments.live_teacher):
        results.append(run_student(asdict(config)))
        print(f"{name}: {results[-1]['accuracy']:.2%}, {results[-1]['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
