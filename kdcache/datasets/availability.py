"""Whether a card's data is there: a look at names; and, where that is asked for, a check of every byte.

A look takes milliseconds, also for ImageNet: it counts class folders and opens no image.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kdcache.datasets.cards import Card, data_place, find_data, obtain_text, open_dataset
from kdcache.datasets.identity import content_digest
from kdcache.errors import IncompatibleError, NotFoundError


@dataclass(frozen=True, kw_only=True)
class Availability:
    """What a look at the data root says about one card.

    Attributes:
        state: "ships" with kdcache; "found"; "incomplete", some files are missing; "missing"; "yours", the card is for
            data that you name yourself.
        place: where the data is or was looked for; None when there is no such place.
        problems: what is not there, in words.
        obtain: the command or page that gets it, for this data root.
    """

    state: str
    place: Path | None
    problems: tuple[str, ...]
    obtain: str


@dataclass(frozen=True, kw_only=True)
class SplitCheck:
    """What reading a split says.

    Attributes:
        split: of the card.
        rows: read; 0 when it could not be.
        digest: of its content; "" when it could not be read.
        pinned: whether the card names a digest, or md5 sums of the files, that it was compared with.
        problem: why it is not the published data; "" when it is, or when the card pins nothing.
    """

    split: str
    rows: int
    digest: str
    pinned: bool
    problem: str


def look_for(card: Card, root: Path | None) -> Availability:
    """Look for the files of a card.

    Args:
        card: the data card.
        root: the data root; else KDCACHE_DATA_ROOT, else ./data/cache.
    """
    obtain = obtain_text(card, root)
    if not card.needs_data_root:
        return Availability(state="ships", place=None, problems=(), obtain=obtain)
    if not card.path and root is None:
        return Availability(state="yours", place=None, problems=(), obtain=obtain)
    try:
        place = find_data(card, root)
    except NotFoundError:
        return Availability(state="missing", place=data_place(root) / card.path, problems=(), obtain=obtain)
    problems = tuple(_LOOKS[card.source](card, place))
    return Availability(state="incomplete" if problems else "found", place=place, problems=problems, obtain=obtain)


def check_data(card: Card, root: Path | None) -> list[SplitCheck]:
    """Read every split of a card and compare it with what the card pins; nothing remembered is trusted.

    Args:
        card: the data card.
        root: the data root; else KDCACHE_DATA_ROOT, else ./data/cache.

    Raises:
        NotFoundError: the data, or a split of it, is not there.
    """
    checks, seen = [], set()
    for split, place in card.splits.items():
        if place in seen:
            continue  # another name for the same rows
        seen.add(place)
        pinned = split in card.digests or (bool(card.md5) and card.source in ("cifar10", "cifar100"))
        try:
            source = open_dataset(str(card.file), split=split, root=root, fresh=True)
        except IncompatibleError as error:
            checks.append(SplitCheck(split=split, rows=0, digest="", pinned=pinned, problem=error.message))
            continue
        digest = content_digest(source)
        checks.append(SplitCheck(split=split, rows=len(source), digest=digest, pinned=pinned, problem=""))
    return checks


def _missing_files(place: Path, names: list[str]) -> list[str]:
    return [f"{name} is not there" for name in names if not (place / name).is_file()]


def _look_for_cifar10(card: Card, place: Path) -> list[str]:
    return _missing_files(place, [*card.md5, "batches.meta"])


def _look_for_cifar100(card: Card, place: Path) -> list[str]:
    return _missing_files(place, [*dict.fromkeys(card.splits.values()), "meta"])


def _look_for_fashion_mnist(card: Card, place: Path) -> list[str]:
    parts = [f"{prefix}-{kind}-ubyte" for prefix in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return [
        problem for name in parts if not (place / f"{name}.gz").is_file() for problem in _missing_files(place, [name])
    ]


def _look_for_text(card: Card, place: Path) -> list[str]:
    return _missing_files(place, [*dict.fromkeys(card.splits.values())])


def _look_for_file(card: Card, place: Path) -> list[str]:
    return [] if place.is_file() else [f"{place} is not a file"]


def _look_for_folders(card: Card, place: Path) -> list[str]:
    problems = []
    for folder in dict.fromkeys(card.splits.values()):
        if not (place / folder).is_dir():
            problems.append(f"{folder}/ is not there")
            continue
        with os.scandir(place / folder) as entries:
            classes = sum(entry.is_dir() for entry in entries)
        if not classes or (card.num_classes and classes != card.num_classes):
            problems.append(f"{folder}/ has {classes} class folders, expected {card.num_classes or 'at least 2'}")
    return problems


_LOOKS: Mapping[str, Callable[[Card, Path], list[str]]] = {
    "cifar10": _look_for_cifar10,
    "cifar100": _look_for_cifar100,
    "fashion-mnist": _look_for_fashion_mnist,
    "image-folder": _look_for_folders,
    "npz": _look_for_file,
    "text": _look_for_text,
    "tokens": _look_for_file,
}
