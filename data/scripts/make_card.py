#!/usr/bin/env python3
"""Write a card for data of your own, after reading all of it: `make_card.py FOLDER_OR_NPZ --out my.toml`.

A folder holds SPLIT/CLASS/*.jpg, an NPZ file SPLIT_images (or SPLIT_inputs) and SPLIT_labels. Every row is read and
decoded, so that a broken image is found now and not in the third epoch. The card pins the content digest of every
split; mean and standard deviation are of the first split, of at most 10,000 rows spread over it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np

from kdcache.datasets.cards import open_dataset
from kdcache.datasets.files import open_image_folder
from kdcache.datasets.identity import content_digest
from kdcache.datasets.npz import EXAMPLE_NAMES, open_npz, read_arrays
from kdcache.datasets.source import DataSource
from kdcache.errors import KdcacheError

MOMENT_ROWS = 10_000


def splits_of(place: Path) -> list[str]:
    """Names of the splits in a folder or an NPZ file, the training split first.

    Raises:
        SystemExit: there are none.
    """
    if place.is_dir():
        names = [entry.name for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    else:
        keys = read_arrays(place)
        names = [key.rsplit("_", 1)[0] for key in keys if key.rsplit("_", 1)[-1] in EXAMPLE_NAMES]
    if not names:
        raise SystemExit(f"{place}: no split: expected SPLIT/CLASS/*.jpg or arrays SPLIT_images and SPLIT_labels")
    return sorted(names, key=lambda name: (name != "train", name))


def moments(source: DataSource) -> tuple[list[float], list[float], set[tuple[int, ...]]]:
    """Mean and standard deviation per channel of x/255 (of x for other numbers), and the shapes met.

    Every row is decoded; at most 10,000 count.
    """
    step = max(1, len(source) // MOMENT_ROWS)
    total, squares, count = np.zeros(1), np.zeros(1), 0
    shapes: set[tuple[int, ...]] = set()
    for row in range(len(source)):
        example = np.asarray(source.example(row))
        shapes.add(example.shape)
        if row % step:
            continue
        values = example.astype(np.float64) / (255 if example.dtype == np.uint8 else 1)
        flat = values.reshape(-1, values.shape[-1] if example.ndim == 3 else 1)
        total, squares, count = total + flat.sum(axis=0), squares + (flat**2).sum(axis=0), count + len(flat)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0)).round(4)
    return mean.round(4).tolist(), np.where(std > 0, std, 1.0).tolist(), shapes  # a constant channel is not scaled


def card_text(name: str, place: Path, licence: str) -> str:
    """The TOML of a card.

    Raises:
        KdcacheError: a row cannot be read, or the splits have other classes.
    """
    folder, names = place.is_dir(), splits_of(place)
    sources = {
        split: open_image_folder(place / split, name=name, split=split)
        if folder
        else open_npz(place, name=name, split=split, num_classes=0)
        for split in names
    }
    classes = {split: source.class_names or source.num_classes for split, source in sources.items()}
    if len(set(classes.values())) != 1:
        raise SystemExit(f"{place}: the splits have other classes: {classes}")
    found = {split: moments(source) for split, source in sources.items()}
    mean, std, shapes = found[names[0]]
    shapes = set().union(*(entry[2] for entry in found.values()))
    rows = ", ".join(f"{split} {len(source):,}" for split, source in sources.items())
    lines = [
        f"name = {json.dumps(name)}",
        f"title = {json.dumps(f'{name}: {next(iter(sources.values())).num_classes} classes; rows: {rows}')}",
        f'source = "{"image-folder" if folder else "npz"}"',
        f"num_classes = {next(iter(sources.values())).num_classes}",
    ]
    shape = next(iter(shapes))
    if len(shapes) == 1 and len(shape) == 3:
        lines += [f"image_shape = {[shape[2], *shape[:2]]}", f"mean = {mean}", f"std = {std}"]
    elif folder:
        lines += ["image_shape = [3, 224, 224]", f"mean = {mean}", f"std = {std}", "resize = 256", "crop = 224"]
    lines += [
        f"path = {json.dumps(place.name)}",
        f"licence = {json.dumps(licence)}",
        f"obtain = {json.dumps(f'give the folder that holds {place.name} with --data-root')}",
        "\n[splits]",
        *[f"{json.dumps(split)} = {json.dumps(split)}" for split in names],
        "\n[digests]",
        *[f"{json.dumps(split)} = {json.dumps(content_digest(source))}" for split, source in sources.items()],
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the card and open every split through it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("place", type=Path, help="folder of SPLIT/CLASS/*.jpg, or an NPZ file")
    parser.add_argument("--name", default="", help="of the data set; else that of the place")
    parser.add_argument("--licence", default="not stated", help="who may use the data")
    parser.add_argument("--out", type=Path, required=True, help="the card, NAME.toml")
    given = parser.parse_args()
    place = given.place.resolve()
    name = given.name or re.sub(r"[^a-z0-9]+", "-", place.stem.lower()).strip("-")
    try:
        given.out.write_text(card_text(name, place, given.licence), encoding="utf-8")
        for split in splits_of(place):
            source = open_dataset(str(given.out), split=split, root=place.parent)
            print(f"{name} {split}: {len(source):,} rows, {source.num_classes} classes")
    except KdcacheError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"card: {given.out}\n  next: kdcache dump-teacher --dataset {given.out} --data-root {place.parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
