"""NPZ files: plain arrays only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdcache.datasets.npz import open_npz
from kdcache.errors import IncompatibleError, NotFoundError


def _open(path: Path, num_classes: int = 0) -> object:
    return open_npz(path, name="x", split="train", num_classes=num_classes)


def test_numbers_keep_their_kind(tmp_path: Path) -> None:
    for dtype, expected in ((np.float64, np.float32), (np.int16, np.int64), (np.uint8, np.uint8)):
        np.savez(tmp_path / "x.npz", train_inputs=np.ones((3, 5), dtype), train_labels=np.arange(3))
        source = open_npz(tmp_path / "x.npz", name="x", split="train", num_classes=0)
        assert source.examples.dtype == expected
        assert source.examples.shape == (3, 5)


def test_classes_come_from_every_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", train_inputs=np.ones((2, 5)), train_labels=[0, 1], test_labels=[6])
    assert open_npz(tmp_path / "x.npz", name="x", split="train", num_classes=0).num_classes == 7
    assert open_npz(tmp_path / "x.npz", name="x", split="train", num_classes=9).num_classes == 9


def test_missing_array_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", training_images=np.ones((2, 5)), train_labels=[0, 1])
    with pytest.raises(IncompatibleError, match="no array 'train_images'") as caught:
        _open(tmp_path / "x.npz")
    assert "training_images" in caught.value.hint


@pytest.mark.parametrize(
    "arrays",
    [
        {"train_images": np.ones((2, 5)), "train_labels": np.array([0.5, 1.0])},
        {"train_images": np.ones((2, 5)), "train_labels": np.array([[0, 1]])},
        {"train_images": np.ones(2), "train_labels": np.array([0, 1])},
        {"train_images": np.array([["a"], ["b"]]), "train_labels": np.array([0, 1])},
        {"train_images": np.array([[{}], [{}]], dtype=object), "train_labels": np.array([0, 1])},
    ],
)
def test_arrays_of_the_wrong_kind_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(IncompatibleError, match=r"x\.npz"):
        _open(tmp_path / "x.npz")


def test_other_files_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "single.npy", np.ones(3))
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04rubbish")
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("single.npy", "text.npz", "cut.npz", "empty.npz"):
        with pytest.raises(IncompatibleError, match=name):
            _open(tmp_path / name)
    with pytest.raises(NotFoundError, match="no such file"):
        _open(tmp_path / "none.npz")
