"""A data card, its data and a store over it, for tests that run whole commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tests.small_store import SmallStore, small_source, write_small_store

ROOT = Path(__file__).resolve().parents[2]

CARD = """
name = "patterns"
title = "6x6 random patterns"
source = "npz"
num_classes = 7
image_shape = [1, 6, 6]
path = "patterns.npz"
licence = "made up"
obtain = "run the tests"
[splits]
train = "train"
test = "test"
[defaults]
student = "mlp-16"
epochs = 3
batch_size = 32
lr = 0.05
"""

LINEAR_STUDENT = """
import torch
def factory(num_classes, input_shape):
    size = 1
    for length in input_shape:
        size *= length
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(size, num_classes)), lambda image: image / 255.0
"""


def write_data(folder: Path, *, rows: int = 300) -> Path:
    """The card (patterns.toml) and its npz file in a folder; the card's path."""
    arrays = {}
    for split, count in (("train", rows), ("test", 201)):
        source = small_source(count, split=split)
        arrays |= {f"{split}_images": source.examples, f"{split}_labels": source.labels}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "patterns.npz", **arrays)
    card = folder / "patterns.toml"
    card.write_text(CARD)
    (folder / "student.py").write_text(LINEAR_STUDENT)
    return card


def write_data_and_store(folder: Path, *, rows: int = 300, topk: int = 3) -> SmallStore:
    """Data as `write_data` and a store over its training rows at FOLDER/store.zarr."""
    card = write_data(folder, rows=rows)
    source = small_source(rows)
    source.name = "patterns"
    return write_small_store(folder / "store.zarr", source, topk=topk, card=str(card))


def start(
    folder: Path, *arguments: str, inside: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `python ARGUMENTS` in a folder, with this checkout importable and one thread.

    `inside` is a command that runs another one, `variables` are added to the environment.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "KDCACHE_DATA_ROOT": str(folder),
        "KDCACHE_CACHE_DIR": str(folder / "cache"),
        **(variables or {}),
    }
    return subprocess.Popen(
        [*inside, sys.executable, *arguments],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for success; stdout."""
    out, err = process.communicate(timeout=1500)
    assert process.returncode == 0, err
    return out
