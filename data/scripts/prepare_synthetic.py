#!/usr/bin/env python3
"""Generate classes with a known correlation: `prepare_synthetic.py [--correlation 0.6] [--data-root ROOT]`.

Writes ROOT/synthetic/data.npz for the card `synthetic`: K=50 classes in 10 groups, 500 inputs, splits teacher, train,
val and test. The generator is that of the synthetic recipe (pipelines/partial_kd/synthetic_data.py says what it draws);
it is ours, in the spirit of Tang et al. 2020. Needs a checkout of kdcache, because it is part of a recipe.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Generate, unless it is there."""
    if not (CHECKOUT / "pipelines").is_dir():
        raise SystemExit("the generator is part of a recipe: run this script in a checkout of kdcache")
    sys.path.insert(0, str(CHECKOUT))
    from kdcache.datasets.cards import data_place
    from pipelines.partial_kd.synthetic_data import write_card, write_data

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--correlation", type=float, default=0.6, help="cosine of two classes of a group, 0 to below 1")
    parser.add_argument("--sigma", type=float, default=5.0, help="length of the noise; a class has length 1")
    parser.add_argument("--folds", type=int, default=1, help="how often a random sine bends the inputs, 0 to 2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="part of the rows of every split")
    parser.add_argument("--data-root", type=Path, default=None, help="else KDCACHE_DATA_ROOT, else ./data/cache")
    given = parser.parse_args()
    folder = data_place(given.data_root) / "synthetic"
    if (folder / "data.npz").is_file():
        raise SystemExit(f"{folder}: is there; remove it to generate another one")
    card = write_card(folder, given.correlation)
    made = write_data(
        folder, given.correlation, sigma=given.sigma, folds=given.folds, seed=given.seed, share=given.share
    )
    made.replace(folder / "data.npz")  # the card knows one file, whatever part of the rows it has
    print(f"{folder / 'data.npz'}: correlation {given.correlation:g}; a card that says so: {card}")


if __name__ == "__main__":
    main()
