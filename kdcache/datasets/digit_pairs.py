"""The embedded sample: two real 8x8 digits side by side, 100 classes (10 * left + right). Ships with kdcache.

`data/sample/digits.npz` holds the 1,797 handwritten digits of UCI's optical recognition test set, as scikit-learn
carries them. Each split pairs digits of its own, so no digit of one split is seen in another; the teacher's own split
is larger than the students', as a team's teacher has usually seen more. Pairs are a pure function of the split's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdcache.datasets.source import ArraySource
from kdcache.errors import NotFoundError
from kdcache.nearest import did_you_mean
from kdcache.seeding import rng_for

NUM_CLASSES = 100
GREY_STEP = 15  # pixels hold 0..16; 15 spreads them over 0..240


@dataclass(frozen=True, kw_only=True)
class PairSplit:
    """How a split is drawn: digits [start, stop) of each class's shuffled digits, and how many pairs of them."""

    start: int
    stop: int
    pairs: int


# The rarest digit (8) has 174 images; every class gives the same number to every split.
SPLITS = {
    "teacher": PairSplit(start=0, stop=64, pairs=20_000),
    "train": PairSplit(start=64, stop=94, pairs=3_000),
    "val": PairSplit(start=94, stop=130, pairs=2_000),
    "test": PairSplit(start=130, stop=174, pairs=4_000),
}


def open_digit_pairs(path: Path, *, split: str) -> ArraySource:
    """Draw a split's pairs.

    Args:
        path: digits.npz with `images` (1797, 8, 8) uint8 in 0..16 and `labels` (1797,).
        split: "teacher", "train", "val" or "test".

    Returns:
        Images (N, 8, 16, 1) uint8; each class has N/100 rows.

    Raises:
        NotFoundError: no such split, or the file is missing.
    """
    chosen = SPLITS.get(split)
    if chosen is None:
        raise NotFoundError(f"data set 'digit-pairs' has no split {split!r}", hint=did_you_mean(split, SPLITS))
    if not path.is_file():
        raise NotFoundError(f"{path}: the embedded sample is missing", hint="install kdcache again, or make it with "
                            "data/prepare_sample.py")  # fmt: skip
    with np.load(path, allow_pickle=False) as content:
        images, digits = content["images"], content["labels"].astype(np.int64)
    pools = [
        _shuffled(np.flatnonzero(digits == digit), "pool", digit)[chosen.start : chosen.stop] for digit in range(10)
    ]
    labels = _shuffled(np.arange(chosen.pairs, dtype=np.int64) % NUM_CLASSES, "order", split)
    left = _drawn(pools, labels // 10, "left", split)
    right = _drawn(pools, labels % 10, "right", split)
    pairs = np.concatenate((images[left], images[right]), axis=2) * np.uint8(GREY_STEP)
    names = [f"{value // 10}|{value % 10}" for value in range(NUM_CLASSES)]
    return ArraySource(
        pairs[..., None], labels, name="digit-pairs", split=split, num_classes=NUM_CLASSES, class_names=names
    )


def _numbers(count: int, *stream: int | str) -> NDArray[np.uint64]:
    # Raw 64-bit words: numpy keeps a bit generator's stream for ever, but not what its distributions make of it.
    words: NDArray[np.uint64] = rng_for("digit-pairs", *stream).bit_generator.random_raw(count)
    return words


def _shuffled(values: NDArray[np.int64], *stream: int | str) -> NDArray[np.int64]:
    shuffled: NDArray[np.int64] = values[np.argsort(_numbers(len(values), *stream), kind="stable")]
    return shuffled


def _drawn(pools: list[NDArray[np.int64]], digits: NDArray[np.int64], *stream: int | str) -> NDArray[np.int64]:
    words = _numbers(len(digits), *stream)
    sizes = np.asarray([len(pool) for pool in pools], dtype=np.uint64)
    positions = (words % sizes[digits]).astype(np.int64)
    return np.stack(pools)[digits, positions]
