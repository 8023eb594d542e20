#!/usr/bin/env python3
"""Unpack ImageNet-1k (ILSVRC 2012) into class folders: `prepare_imagenet.py FOLDER_OF_ARCHIVES --data-root ROOT`.

The archives are for those who registered at image-net.org: ILSVRC2012_img_train.tar (138 GB), ILSVRC2012_img_val.tar
(6.3 GB) and ILSVRC2012_devkit_t12.tar.gz (2.5 MB), which says which validation image is of which class. Their md5 sums
are compared with the card's. Images are written as they are. Stopped at any point, the same command continues.
Reading the devkit needs scipy, which kdcache does not: pip install scipy.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import shutil
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from kdcache.datasets.cards import data_place, load_card

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"


def check_md5(archive: Path, expected: str) -> None:
    """Compare an archive with its published md5.

    Raises:
        SystemExit: it is not there, or another one.
    """
    if not archive.is_file():
        raise SystemExit(f"{archive}: not found; register at https://image-net.org/download and put it there")
    digest = hashlib.md5(usedforsecurity=False)
    with archive.open("rb") as file:
        while part := file.read(2**24):
            digest.update(part)
    if digest.hexdigest() != expected:
        raise SystemExit(f"{archive}: md5 {digest.hexdigest()}, expected {expected}: fetch it again")


def unpack_train(archive: Path, out: Path) -> int:
    """Write OUT/WNID/NAME.JPEG from a tar of one tar per class; returns how many classes were unpacked now.

    A class folder appears when it is whole, so those that are there are skipped.
    """
    unpacked = 0
    with tarfile.open(archive, "r:") as classes:
        for member, content in _files(classes):
            folder = out / PurePosixPath(member).stem
            if folder.exists():
                continue
            partial = _empty(folder)
            with tarfile.open(fileobj=content, mode="r:") as images:
                for name, image in _files(images):
                    (partial / name).write_bytes(image.read())
            partial.rename(folder)
            unpacked += 1
    return unpacked


def unpack_val(archive: Path, wnids: Sequence[str], out: Path) -> int:
    """Write OUT/WNID/NAME.JPEG: the n-th image by name is of the n-th class of the list; returns how many images.

    The folder appears when it is whole; nothing is done when it is there.

    Raises:
        SystemExit: images and list differ in number.
    """
    if out.exists():
        return 0
    with tarfile.open(archive, "r:") as images:
        names = sorted(PurePosixPath(member.name).name for member in images.getmembers() if member.isfile())
        if len(names) != len(wnids):
            raise SystemExit(f"{archive}: {len(names):,} images, but the devkit has {len(wnids):,} labels")
        class_of = dict(zip(names, wnids, strict=True))
        partial = _empty(out)
        for name, image in _files(images):
            (partial / class_of[name]).mkdir(exist_ok=True)
            (partial / class_of[name] / name).write_bytes(image.read())
    partial.rename(out)
    return len(names)


def validation_classes(devkit: Path) -> list[str]:
    """The WordNet id of every validation image, in the order of their numbers, from the devkit's two files.

    Raises:
        SystemExit: scipy is not installed.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise SystemExit("reading the devkit needs scipy: pip install scipy") from None
    with tarfile.open(devkit, "r:gz") as archive:
        found = {PurePosixPath(name).name: content.read() for name, content in _files(archive, folders=True)}
    synsets = loadmat(io.BytesIO(found["meta.mat"]), squeeze_me=True)["synsets"]
    # a row: number, WordNet id, words, gloss, how many children ...; the classes are those without children
    wnid_of = {int(row[0]): str(row[1]) for row in synsets if int(row[4]) == 0}
    return [wnid_of[int(line)] for line in found["ILSVRC2012_validation_ground_truth.txt"].split()]


def _files(archive: tarfile.TarFile, *, folders: bool = False) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, content) of the plain files of an archive; nothing else in it is looked at."""
    for member in archive:
        name = PurePosixPath(member.name)
        content = archive.extractfile(member) if member.isfile() else None
        if content is None:
            continue
        if not folders and (len(name.parts) != 1 or name.name in ("..", ".")):
            raise SystemExit(f"{archive.name}: {member.name!r} is not a plain file name; is this the right archive?")
        yield str(name), content


def _empty(folder: Path) -> Path:
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return partial


def main() -> None:
    """Check, unpack and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archives", type=Path, help="folder with the three archives")
    parser.add_argument("--data-root", type=Path, default=None, help="else KDCACHE_DATA_ROOT, else ./data/cache")
    parser.add_argument("--only", choices=("train", "val"), default=None, help="one of the two")
    arguments = parser.parse_args()
    card, out = load_card("imagenet"), data_place(arguments.data_root) / "imagenet"
    say = sys.stdout.write
    if arguments.only != "train" and not (out / "val").exists():
        for name in (DEVKIT, VAL):
            check_md5(arguments.archives / name, card.archives[name])
        wnids = validation_classes(arguments.archives / DEVKIT)
        say(f"{out / 'val'}: {unpack_val(arguments.archives / VAL, wnids, out / 'val'):,} images\n")
    if arguments.only != "val":
        check_md5(arguments.archives / TRAIN, card.archives[TRAIN])
        say(f"{out / 'train'}: {unpack_train(arguments.archives / TRAIN, out / 'train')} classes unpacked\n")


if __name__ == "__main__":
    main()
