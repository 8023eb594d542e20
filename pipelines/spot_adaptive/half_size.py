"""CIFAR-100 at half the size: 16 x 16 pixels, the mean of every 2 x 2, so that a CPU trains four times as many rows.

Written once as an NPZ file with its data card. The last 5,000 training rows are the validation split: they are in no
split that anything is trained on.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.datasets.cards import Card, load_card, open_dataset

VALIDATION_ROWS = 5_000
_CARD = """name = "cifar100-half"
title = "CIFAR-100 at 16 x 16 pixels (mean of 2 x 2): 45,000 + 5,000 + 10,000"
source = "npz"
num_classes = 100
image_shape = [3, 16, 16]
mean = {mean}
std = {std}
licence = "{licence}"
obtain = "python -m pipelines.spot_adaptive.run --scale cpu writes it from cifar100"

[splits]
train = "train"
val = "val"
test = "test"
"""


def write_half_size(folder: Path, *, data_root: Path | None) -> tuple[Path, Path]:
    """Write `data.npz` and `card.toml` unless both are there.

    Args:
        folder: where they go.
        data_root: where CIFAR-100 is; None is the default place.

    Returns:
        the card's path and the data file's, which is the card's data root.

    Raises:
        NotFoundError: CIFAR-100 is not there.
    """
    card, data = folder / "card.toml", folder / "data.npz"
    if card.is_file() and data.is_file():
        return card, data
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, NDArray[np.generic]] = {}
    for split in ("train", "test"):
        source = open_dataset("cifar100", split=split, root=data_root)
        images: NDArray[Any] = np.stack([source.example(row) for row in range(len(source))])
        arrays[f"{split}_images"] = halved(images)
        arrays[f"{split}_labels"] = source.labels
    for name in ("images", "labels"):
        whole = arrays[f"train_{name}"]
        arrays[f"train_{name}"], arrays[f"val_{name}"] = whole[:-VALIDATION_ROWS], whole[-VALIDATION_ROWS:]
    np.savez(data, **arrays)  # type: ignore[arg-type]  # numpy's stub takes no mapping of arrays
    card.write_text(_card_text())
    return card, data


def half_card() -> Card:
    """The card as it would be written, for costs; no data is read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "card.toml"
        path.write_text(_card_text())
        return load_card(str(path))


def _card_text() -> str:
    original = load_card("cifar100")
    return _CARD.format(mean=list(original.mean), std=list(original.std), licence=original.licence)


def halved(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, H, W, C) uint8 with even H and W -> (N, H/2, W/2, C) uint8, the rounded mean of every 2 x 2 pixels."""
    rows, height, width, channels = images.shape
    blocks = images.reshape(rows, height // 2, 2, width // 2, 2, channels).astype(np.uint16)
    mean: NDArray[np.uint8] = ((blocks.sum(axis=(2, 4)) + 2) // 4).astype(np.uint8)
    return mean
