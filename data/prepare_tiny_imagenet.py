#!/usr/bin/env python3
"""Sort Tiny-ImageNet's validation images into class folders: `python data/prepare_tiny_imagenet.py tiny-imagenet-200`.

The official archive keeps them in one folder with a list beside it. Files are moved, never changed; running it again
does nothing. The training images need no change (`train/WNID/images/*.JPEG`).
"""

from __future__ import annotations

import argparse
from pathlib import Path


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
    """Sort and report."""
    parser = argparse.ArgumentParser(description="Sort Tiny-ImageNet's validation images into class folders.")
    parser.add_argument("folder", type=Path, help="the unpacked tiny-imagenet-200")
    folder = parser.parse_args().folder
    print(f"{folder}: {sort_validation_images(folder)} images moved")  # noqa: T201


if __name__ == "__main__":
    main()
