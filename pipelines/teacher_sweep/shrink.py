"""Tiny-ImageNet at 32 pixels in one NPZ file, for a grid that would otherwise decode 64-pixel JPEGs in every epoch.

Every image is resized with antialiasing (box of 2 x 2 pixels at half the size); the last rows of each class of the
training part become the validation split, and the validation part becomes the test split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcache.datasets.cards import open_dataset
from kdcache.datasets.source import DataSource


def write_small(dataset: str, out: Path, *, data_root: Path | None, side: int, val_per_class: int) -> Path:
    """Write train, val and test of an image data set at one size; returns the file. Does nothing if it is there.

    Args:
        dataset: a card with the splits train and val.
        out: the NPZ file, for the card `npz`.
        data_root: where the card's files are.
        side: pixels.
        val_per_class: rows of each class, the last ones of the training part, that become `val`.
    """
    if out.is_file():
        return out
    train = open_dataset(dataset, split="train", root=data_root)
    test = open_dataset(dataset, split="val", root=data_root)
    held = held_out(train.labels, val_per_class)
    images = _images(train, side)
    arrays: dict[str, Any] = {"names": np.array(train.class_names)}
    for name, rows in (("train", ~held), ("val", held)):
        arrays[f"{name}_images"], arrays[f"{name}_labels"] = images[rows], train.labels[rows]
    arrays["test_images"], arrays["test_labels"] = _images(test, side), test.labels
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part.npz")
    np.savez(part, **arrays)
    part.rename(out)
    return out


def held_out(labels: NDArray[np.int64], per_class: int) -> NDArray[np.bool_]:
    """(N,) whether a row is among the last `per_class` rows of its class."""
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        held[np.flatnonzero(labels == label)[-per_class:]] = True
    return held


def _images(source: DataSource, side: int) -> NDArray[np.uint8]:
    """(N, side, side, 3) uint8."""
    size = (side, side)
    return np.stack(
        [
            np.asarray(
                Image.fromarray(np.asarray(source.example(row))).convert("RGB").resize(size, Image.Resampling.BOX)
            )
            for row in range(len(source))
        ]
    )
