"""A tiny data set and teachers of every kind of behaviour, for tests that go through the command line.

Six classes of 8 x 8 grey images told apart by brightness; a teacher that sees it, and teachers that fail in one way
each. Everything is a file in a folder, as a user would have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CLASSES = 6
TRAIN_ROWS = 700  # three blocks of at most 256 rows
TEST_ROWS = 48
MARKED_ROW = 37  # its first pixel is 255: the teachers that fail at one row fail here

TEACHERS = '''
"""Teachers for the tests: `good`, and one for each way of going wrong."""

import os
import pathlib
import time

import torch
from torch import nn

CALLS = {"count": 0}


def scaled(image):
    return image.float() / 255


class Brightness(nn.Module):
    """Logits from the mean brightness of an image."""

    def __init__(self, classes):
        super().__init__()
        self.register_buffer("centres", (torch.arange(classes) + 0.5) / classes)

    def forward(self, images):
        mean = images.flatten(1)[:, 1:].mean(dim=1, keepdim=True)
        return -200 * (mean - self.centres) ** 2


class Wrong(Brightness):
    def forward(self, images):
        return super().forward(images).roll(1, dims=1)


class Broken(Brightness):
    def forward(self, images):
        logits = super().forward(images)
        logits[images.flatten(1)[:, 0] == 1.0] = float("nan")
        return logits


class Stopped(Brightness):
    """Ctrl-C in the middle of the dump, unless KDCACHE_TEST_CALM is set."""

    def forward(self, images):
        CALLS["count"] += 1
        if CALLS["count"] > 18 and not os.environ.get("KDCACHE_TEST_CALM"):
            raise KeyboardInterrupt
        return super().forward(images)


class Failing(Brightness):
    """An exception in the middle of the dump, unless KDCACHE_TEST_CALM is set."""

    def forward(self, images):
        CALLS["count"] += 1
        if CALLS["count"] > 18 and not os.environ.get("KDCACHE_TEST_CALM"):
            raise RuntimeError("the teacher is tired")
        return super().forward(images)


class Slow(Brightness):
    def forward(self, images):
        if not os.environ.get("KDCACHE_TEST_CALM"):
            time.sleep(0.15)
        return super().forward(images)


class Gated(Brightness):
    """Waits while the file KDCACHE_TEST_GATE holds the dump: a store, and how many of its blocks may be committed."""

    def forward(self, images):
        while held(os.environ.get("KDCACHE_TEST_GATE", "")):
            time.sleep(0.02)
        return super().forward(images)


def held(gate):
    try:
        store, blocks = pathlib.Path(gate).read_text().split("\\n") if gate else ("", "0")
    except OSError:
        return False
    return bool(store) and len(list(pathlib.Path(store, ".kdcache", "ledger").glob("*.json"))) >= int(blocks)


def good(num_classes, input_shape):
    return Brightness(num_classes), scaled


def permuted(num_classes, input_shape):
    return Wrong(num_classes), scaled


def few(num_classes, input_shape):
    return Brightness(num_classes - 1), scaled


def nan(num_classes, input_shape):
    return Broken(num_classes), scaled


def stopped(num_classes, input_shape):
    CALLS["count"] = 0
    return Stopped(num_classes), scaled


def tired(num_classes, input_shape):
    CALLS["count"] = 0
    return Failing(num_classes), scaled


def slow(num_classes, input_shape):
    return Slow(num_classes), scaled


def gated(num_classes, input_shape):
    return Gated(num_classes), scaled


def failing(num_classes, input_shape):
    raise RuntimeError("no weights today")
'''


@dataclass(frozen=True)
class Gate:
    """Holds dumps of the `gated` teacher at a number of blocks, however fast or slow the machine is.

    Processes find it by the variable KDCACHE_TEST_GATE, its path.
    """

    path: Path
    store: Path

    def hold(self, blocks: int) -> None:
        """Let no forward pass begin once so many blocks are committed; those under way still end."""
        new = self.path.with_suffix(".new")
        new.write_text(f"{self.store}\n{blocks}")
        new.replace(self.path)

    def open(self) -> None:
        """Hold nothing any more."""
        self.path.unlink()


@dataclass(frozen=True)
class World:
    """A folder with `data.npz` and `teachers.py`."""

    folder: Path

    @property
    def data(self) -> Path:
        """The NPZ file."""
        return self.folder / "data.npz"

    def teacher(self, name: str) -> str:
        """`teachers.py:NAME` as typed on the command line."""
        return f"{self.folder / 'teachers.py'}:{name}"

    def dump(self, teacher: str = "good", *, out: str = "store.zarr") -> list[str]:
        """The words of a dump-teacher command for this data; 3 classes of 6 are kept, 32 rows a batch."""
        words = ["dump-teacher", "--dataset", "npz", "--data-root", str(self.data), "--teacher", self.teacher(teacher)]
        return [*words, "--topk", "3", "--batch-size", "32", "--out", out]

    def distill(self, *more: str, store: str = "store.zarr") -> list[str]:
        """The words of a distill command for this data: one short epoch."""
        words = ["distill", "--store", store, "--data-root", str(self.data), "--epochs", "1", "--batch-size", "64"]
        return [*words, "--lr", "0.01", *more]


def images_and_labels(rows: int, *, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(rows, 8, 8) uint8 images and (rows,) labels; the first pixel is a mark, 0 but for MARKED_ROW."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, rows)
    level = (labels + 0.5) / CLASSES * 255
    images = np.clip(level[:, None, None] + rng.normal(0, 8, (rows, 8, 8)), 0, 254).astype(np.uint8)
    images[:, 0, 0] = 0
    if rows > MARKED_ROW:
        images[MARKED_ROW, 0, 0] = 255
    return images, labels.astype(np.int64)


def save_data(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """Write the NPZ file: these training rows and the usual test rows."""
    test_images, test_labels = images_and_labels(TEST_ROWS, seed=1)
    test_images[:, 0, 0] = 0
    names = np.array([f"level {number}" for number in range(CLASSES)])
    np.savez(
        path,
        train_images=images,
        train_labels=labels,
        test_images=test_images,
        test_labels=test_labels,
        names=names,
    )


def make_world(folder: Path) -> World:
    """Write the data set and the teachers."""
    folder.mkdir(parents=True, exist_ok=True)
    world = World(folder)
    save_data(world.data, *images_and_labels(TRAIN_ROWS, seed=0))
    (folder / "teachers.py").write_text(TEACHERS)
    return world
