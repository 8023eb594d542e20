"""Synthetic classes with a known correlation: ours, in the spirit of Tang et al. 2020.

K=50 classes in C=10 groups, D=500 inputs. Directions v_k = tau u_group + sqrt(1 - tau^2) e_k with unit u and e, so that
the cosine of two classes of a group is tau^2 in expectation and about 0 across groups. x = v_y + sigma noise / sqrt(D),
then `folds` times x <- x + sin(A x + b), which bends the classes into each other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

INPUTS, CLASSES, GROUPS = 500, 50, 10
SPLITS = {"teacher": 20_000, "train": 5_000, "val": 5_000, "test": 10_000}


def class_directions(tau2: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """(K, D) unit rows whose cosine is about tau^2 within a group (class k is in group k mod C) and 0 across.

    Args:
        tau2: the correlation, 0 to below 1.
        rng: draws the directions.
    """
    group = _unit_rows(rng, GROUPS)[np.arange(CLASSES) % GROUPS]
    own = _unit_rows(rng, CLASSES)
    rows = np.sqrt(tau2) * group + np.sqrt(1 - tau2) * own
    unit: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def write_card(folder: Path, tau2: float) -> Path:
    """Write the card of one data set, `card.toml`, unless it is there; its path."""
    card = folder / "card.toml"
    if not card.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        splits = "\n".join(f'{split} = "{split}"' for split in SPLITS)
        card.write_text(
            f'name = "synthetic-{round(1000 * tau2)}"\ntitle = "Synthetic classes, correlation {tau2:g}"\n'
            f'source = "npz"\nnum_classes = {CLASSES}\nimage_shape = [{INPUTS}]\nlicence = "generated"\n'
            f'obtain = "python -m pipelines.partial_kd.synthetic"\n\n[splits]\n{splits}\n'
        )
    return card


def data_file(folder: Path, share: float = 1.0) -> Path:
    """Where a data set is; one of fewer rows is another file."""
    return folder / ("data.npz" if share == 1 else f"data-{share:g}.npz")


def write_data(folder: Path, tau2: float, *, sigma: float, folds: int, seed: int, share: float = 1.0) -> Path:
    """Write one data set as `data_file` names it, unless it is there; its path.

    Args:
        folder: where it goes.
        tau2: correlation of the classes of a group.
        sigma: length of the noise.
        folds: how often the sine is added, 0 to 2.
        seed: of everything.
        share: part of the rows of every split, for trials.
    """
    data = data_file(folder, share)
    if data.is_file():
        return data
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, round(1000 * tau2), folds])
    directions = class_directions(tau2, rng)
    bends = [(rng.standard_normal((INPUTS, INPUTS)), rng.uniform(0, 2 * np.pi, INPUTS)) for _ in range(folds)]
    scale = np.float32(np.sqrt(INPUTS / (1 + sigma**2)))  # entries of variance about 1
    arrays: dict[str, NDArray[np.generic]] = {}
    for split, whole in SPLITS.items():
        rows = max(CLASSES, int(whole * share))
        labels = rng.permutation(np.arange(rows) % CLASSES)
        x = directions[labels] + sigma / np.sqrt(INPUTS) * rng.standard_normal((rows, INPUTS))
        for matrix, phase in bends:
            x = x + np.sin(x @ matrix.T + phase) / np.sqrt(INPUTS)
        arrays[f"{split}_inputs"] = x.astype(np.float32) * scale
        arrays[f"{split}_labels"] = labels.astype(np.int64)
    part = folder / "data.part.npz"  # appears whole or not at all
    np.savez(part, **arrays)  # type: ignore[arg-type]  # numpy's stub takes no mapping of arrays
    part.replace(data)
    return data


def _unit_rows(rng: np.random.Generator, rows: int) -> NDArray[np.float64]:
    values = rng.standard_normal((rows, INPUTS))
    unit: NDArray[np.float64] = values / np.linalg.norm(values, axis=1, keepdims=True)
    return unit
