#!/usr/bin/env python3
"""Unpack Tiny-ImageNet and sort its validation images into class folders: `prepare_tiny_imagenet.py ZIP_OR_FOLDER`.

The archive, http://cs231n.stanford.edu/tiny-imagenet-200.zip (248 MB), keeps the validation images in one folder with a
list beside it. They are moved, never changed; running it again does nothing. The training images need no change
(`train/WNID/images/*.JPEG`).
"""

from __future__ import annotations

import argparse
import hashlib
import zipfile
from pathlib import Path

from kdcache.datasets.cards import data_place, load_card

NAME = "tiny-imagenet-200"


def unpack(archive: Path, root: Path) -> Path:
    """Unpack the archive under the data root; the folder.

    Every member's checksum is compared as it is read. Another md5 than the one everybody has is said, not refused: its
    authors published none.
    """
    digest = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    if digest != load_card("tiny-imagenet").archives[f"{NAME}.zip"]:
        print(f"{archive}: md5 {digest}: not the archive that others have; its images may differ")
    with zipfile.ZipFile(archive) as content:
        strange = [name for name in content.namelist() if not name.startswith(f"{NAME}/") or ".." in name]
        if strange:
            raise SystemExit(f"{archive}: {strange[0]!r} is not in {NAME}/; is this the right archive?")
        content.extractall(root)
    return root / NAME


def sort_validation_images(folder: Path) -> int:
    """Move `val/images/NAME` to `val/WNID/NAME`; returns how many were moved.

    Raises:
        SystemExit: the list is missing although unsorted images are there, or names an image that is nowhere.
    """
    images, listing = folder / "val" / "images", folder / "val" / "val_annotations.txt"
    if not images.is_dir():
        return 0
    if not listing.is_file():
        raise SystemExit(f"{listing}: not found; is {folder} the unpacked tiny-imagenet-200.zip?")
    moved = 0
    for line in listing.read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        target = folder / "val" / wnid / name
        if target.exists():
            continue
        if not (images / name).is_file():
            raise SystemExit(f"{images / name}: listed in {listing.name}, but not there")
        target.parent.mkdir(exist_ok=True)
        (images / name).rename(target)
        moved += 1
    images.rmdir()  # an empty class folder would be refused; anything unlisted stops here
    return moved


def main() -> None:
    """Unpack, sort and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("place", type=Path, help=f"{NAME}.zip, or the folder it was unpacked to")
    parser.add_argument("--data-root", type=Path, default=None, help="else KDCACHE_DATA_ROOT, else ./data/cache")
    arguments = parser.parse_args()
    place: Path = arguments.place
    if not place.exists():
        raise SystemExit(f"{place}: not found; fetch http://cs231n.stanford.edu/{NAME}.zip")
    folder = place if place.is_dir() else unpack(place, data_place(arguments.data_root))
    print(f"{folder}: {sort_validation_images(folder)} images moved")


if __name__ == "__main__":
    main()
