"""Image folders: torchvision's row order, the files' own bytes, RGB pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from kdcache.datasets.cards import open_dataset
from kdcache.datasets.files import FileSource, open_image_folder
from kdcache.errors import IncompatibleError, NotFoundError


def test_rows_and_pixels_are_torchvisions(image_root: Path) -> None:
    ours = open_image_folder(image_root / "train", name="x", split="train")
    theirs = ImageFolder(str(image_root / "train"))
    assert list(ours.class_names) == theirs.classes
    assert ours.labels.tolist() == theirs.targets
    assert [str((ours.folder / path).resolve()) for path in ours.paths] == [
        str(Path(path).resolve()) for path, _ in theirs.samples
    ]
    for row, (image, _) in enumerate(theirs):
        assert np.array_equal(ours.example(row), np.asarray(image))
        assert ours.example(row).dtype == np.uint8


def test_raw_is_the_files_bytes(image_root: Path) -> None:
    source = open_image_folder(image_root / "train", name="x", split="train")
    assert source.raw(0) == (source.folder / source.paths[0]).read_bytes()


def test_generic_card_takes_the_folder_itself(image_root: Path) -> None:
    source = open_dataset("imagefolder", split="train", root=image_root)
    assert isinstance(source, FileSource)
    assert (len(source), source.num_classes) == (7, 3)
    with pytest.raises(NotFoundError, match="no folder"):
        open_dataset("imagefolder", split="test", root=image_root)


def test_fingerprint_changes_with_any_file(image_root: Path) -> None:
    source = open_image_folder(image_root / "train", name="x", split="train")
    before = source.fingerprint()
    assert before == open_image_folder(image_root / "train", name="x", split="train").fingerprint()
    path = source.folder / source.paths[3]
    path.write_bytes(path.read_bytes() + b" ")
    assert source.fingerprint() != before


def test_empty_classes_and_empty_folders_are_refused(image_root: Path, tmp_path: Path) -> None:
    (image_root / "train" / "dog").mkdir()
    with pytest.raises(NotFoundError, match="dog: no image files"):
        open_image_folder(image_root / "train", name="x", split="train")
    for folder in (tmp_path / "none", image_root / "train" / "dog"):
        with pytest.raises(NotFoundError, match="expected one folder of images per class"):
            open_image_folder(folder, name="x", split="train")


def test_damaged_and_vanished_files_name_the_row(image_root: Path) -> None:
    source = open_image_folder(image_root / "train", name="x", split="train")
    path = source.folder / source.paths[2]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(IncompatibleError, match=r"\(row 2\): not a readable image"):
        source.example(2)
    path.unlink()
    with pytest.raises(NotFoundError, match="row 2 of 'x' cannot be read"):
        source.raw(2)


def test_tiny_imagenet_part_opens(shared: Path, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(shared / "tiny-imagenet" / "val.tar") as archive:
        archive.extractall(tmp_path / "tiny-imagenet-200", filter="data")
    source = open_dataset("tiny-imagenet", split="test", root=tmp_path)
    assert (len(source), source.num_classes) == (2000, 200)
    assert source.example(0).shape == (64, 64, 3)
