"""Data cards: TOML files that say what a data set is, where it is looked for and how to obtain it.

`load_card` reads and checks a card; `open_dataset` opens what it describes. The cards of `data/cards` ship with
kdcache; a card of the user's own is given by its path. Nothing is downloaded, and no torch is imported.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from kdcache.datasets.card_schema import check_defaults, checked_table
from kdcache.datasets.digit_pairs import open_digit_pairs
from kdcache.datasets.files import open_image_folder
from kdcache.datasets.identity import content_digest
from kdcache.datasets.npz import open_npz
from kdcache.datasets.row_range import parse_split, row_range
from kdcache.datasets.sequences import TokenSource
from kdcache.datasets.source import ArraySource, DataSource
from kdcache.datasets.text import open_text
from kdcache.datasets.token_files import open_token_file
from kdcache.datasets.torchvision_adapter import open_cifar, open_fashion_mnist
from kdcache.datasets.user_source import open_user_source
from kdcache.errors import ConfigError, IncompatibleError, NotFoundError
from kdcache.nearest import did_you_mean
from kdcache.specs import PreprocessingSpec
from kdcache.user_code import find_factory, is_user_factory


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a data card says.

    Attributes:
        name: how the data set is asked for.
        title: one line for listings.
        source: "digit-pairs", "cifar10", "cifar100", "fashion-mnist", "image-folder", "npz", "text" or "tokens": who
            reads it.
        num_classes: K, or 0 when the data itself says.
        image_shape: (C, H, W) of one example, or empty when examples differ; a model sees them after resize and crop.
        mean, std: per channel of x/255.
        resize, crop, interpolation: how examples reach one size; None leaves them.
        splits: kdcache's split names to the source's own (a folder, a prefix).
        path: file or folder under the data root.
        digests: split to the pinned content digest, checked when the split is opened.
        md5: file name to its published md5, where no content digest is known.
        archives: file to download -> its md5, for the scripts that unpack it.
        defaults: teacher, weights, student, epochs, batch_size, lr ..., `methods.NAME` for those of a method.
        licence, citation, homepage, layout: what a user needs to know about the data and its files.
        obtain: how to get it; DATA_ROOT and SCRIPTS stand for the data root and the folder of kdcache's data scripts.
        file: the card.
    """

    name: str
    title: str
    source: str
    splits: Mapping[str, str]
    licence: str
    obtain: str
    num_classes: int = 0
    image_shape: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: int | None = None
    crop: int | None = None
    interpolation: str = "bilinear"
    path: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)
    md5: Mapping[str, str] = field(default_factory=dict)
    archives: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    citation: str = ""
    homepage: str = ""
    layout: str = ""
    file: Path = Path()

    @property
    def preprocessing(self) -> PreprocessingSpec:
        """How a model without preprocessing of its own sees this data."""
        return PreprocessingSpec(
            resize=self.resize, crop=self.crop, interpolation=self.interpolation, mean=self.mean, std=self.std
        )

    @property
    def needs_data_root(self) -> bool:
        """Whether the data has to be obtained; False for the embedded sample."""
        return self.source != "digit-pairs"


def card_names() -> tuple[str, ...]:
    """Names of the cards that ship with kdcache."""
    return tuple(sorted(path.stem for path in shipped_folder("cards").glob("*.toml")))


def shipped_folder(kind: str) -> Path:
    """Where kdcache's own "cards", "sample" or "scripts" are: in an installed package, else in the checkout's data/."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_data" / kind
    return installed if installed.is_dir() else package.parent / "data" / kind


def load_card(name: str) -> Card:
    """Read a card by name, or by the path of a TOML file.

    Raises:
        NotFoundError: no such card or file, with the nearest names.
        ConfigError: the card has an unknown or missing key, or a value of the wrong type.
    """
    if name.endswith(".toml"):
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise NotFoundError(
                f"data card {path}: no such file", hint="give a card's name or the path of its TOML file"
            )
    else:
        path = shipped_folder("cards") / f"{name}.toml"
        if name not in card_names():
            raise NotFoundError(f"data card {name!r} is unknown", hint=did_you_mean(name, card_names()))
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"data card {path}: not TOML ({error})") from error
    return _parse_card(path, content)


def open_dataset(name: str, *, split: str, root: Path | None = None, fresh: bool = False) -> DataSource:
    """Open one split of a data set.

    Args:
        name: a card's name, the path of a card.toml, or `file.py:factory`.
        split: "train", "test" or another split of the card, or a part of one: "train[:10000]".
        root: where the data is: the folder that torchvision or the card's `path` starts from, or the very file or
            folder; else KDCACHE_DATA_ROOT, else ./data/cache.
        fresh: read files again whose digest is remembered from an earlier reading.

    Raises:
        NotFoundError: unknown card or split, or the data is not there; the hint says how to obtain it.
        IncompatibleError: the data is there but is not what the card pins.
        ConfigError: a card or factory that breaks its rules.
    """
    whole, start, stop = parse_split(split)
    source = _open_split(name, split=whole, root=root, fresh=fresh)
    return source if whole == split else row_range(source, start, stop)


def _open_split(name: str, *, split: str, root: Path | None, fresh: bool) -> DataSource:
    if is_user_factory(name):
        return open_user_source(find_factory(name), split=split, root=root)
    card = load_card(name)
    if split not in card.splits:
        raise NotFoundError(f"data set {card.name!r} has no split {split!r}", hint=did_you_mean(split, card.splits))
    source = _OPENERS[card.source](card, split, root)
    if card.num_classes and source.num_classes != card.num_classes:
        raise IncompatibleError(
            f"data set {card.name!r} split {split!r}: the card says {card.num_classes} classes, "
            f"the data has {source.num_classes}"
        )
    if fresh:
        content_digest(source, fresh=True)
    pinned = card.digests.get(split)
    if pinned and content_digest(source) != pinned:
        raise IncompatibleError(
            f"data set {card.name!r} split {split!r}: content digest {content_digest(source)[:16]}..., "
            f"the card pins {pinned[:16]}...: these are not the published examples in the published order",
            hint="obtain the data again, or write a card of your own for changed data",
        )
    return source


def find_data(card: Card, root: Path | None) -> Path:
    """The file or folder a card's data is in.

    Looks at `root`, else KDCACHE_DATA_ROOT, else ./data/cache; there for the card's `path`, then for the place itself.

    Raises:
        NotFoundError: it is in none of these; every place looked at is named.
    """
    place = data_place(root)
    under = place / card.path
    if card.path and under.exists():
        return under
    if place.exists() and (not card.path or place.name == Path(card.path).name):
        return place
    looked = f"{under.resolve()}" if card.path else f"{place.resolve()}"
    origin = "--data-root" if root else "KDCACHE_DATA_ROOT" if os.environ.get("KDCACHE_DATA_ROOT") else "the default"
    raise NotFoundError(
        f"data set {card.name!r}: looked for {looked} ({origin}); it is not there", hint=obtain_text(card, root)
    )


def data_place(root: Path | None) -> Path:
    """The data root: `root`, else KDCACHE_DATA_ROOT, else ./data/cache."""
    return (root or Path(os.environ.get("KDCACHE_DATA_ROOT") or Path("data") / "cache")).expanduser()


def obtain_text(card: Card, root: Path | None) -> str:
    """How to obtain a card's data, with the data root and the folder of kdcache's scripts filled in."""
    scripts = shipped_folder("scripts")
    if scripts.is_relative_to(Path.cwd()):
        scripts = scripts.relative_to(Path.cwd())
    return card.obtain.replace("DATA_ROOT", str(data_place(root))).replace("SCRIPTS", str(scripts))


def _parse_card(path: Path, content: Mapping[str, Any]) -> Card:
    known = {item.name for item in fields(Card)} - {"file"}
    values = checked_table(content, known, subject=f"data card {path}")
    if values.get("source") not in _OPENERS:
        raise ConfigError(
            f"data card {path}: source {values.get('source')!r} is unknown",
            hint=did_you_mean(str(values.get("source")), _OPENERS),
        )
    if not values["splits"]:
        raise ConfigError(f"data card {path}: [splits] names no split")
    defaults = check_defaults(values.get("defaults", {}), subject=f"data card {path} [defaults]")
    weights = defaults.get("weights")
    if weights and not Path(weights).is_absolute() and "/" in weights:
        # Relative to the card, so that a card and its weights can be moved together; the sample's ship that way.
        defaults = {**defaults, "weights": str((path.parent / weights).resolve())}
    values["defaults"] = defaults
    card = Card(**values, file=path)
    try:
        spec = card.preprocessing
    except ConfigError as error:
        raise ConfigError(f"data card {path}: {error.message}") from error
    if card.image_shape and spec.mean and len(spec.mean) not in (1, card.image_shape[0]):
        raise ConfigError(f"data card {path}: {len(spec.mean)} means for {card.image_shape[0]} channels")
    return card


def _open_cifar10(card: Card, split: str, root: Path | None) -> ArraySource:
    files = [f"data_batch_{i}" for i in range(1, 6)] if card.splits[split] == "train" else ["test_batch"]
    return open_cifar(
        find_data(card, root),
        files,
        label_key="labels",
        meta=("batches.meta", "label_names"),
        name=card.name,
        split=split,
        md5=card.md5,
    )


def _open_cifar100(card: Card, split: str, root: Path | None) -> ArraySource:
    return open_cifar(
        find_data(card, root),
        [card.splits[split]],
        label_key="fine_labels",
        meta=("meta", "fine_label_names"),
        name=card.name,
        split=split,
        md5=card.md5,
    )


def _open_fashion_mnist(card: Card, split: str, root: Path | None) -> ArraySource:
    return open_fashion_mnist(find_data(card, root), name=card.name, split=split)


def _open_digit_pairs(card: Card, split: str, root: Path | None) -> ArraySource:
    return open_digit_pairs(shipped_folder("sample") / "digits.npz", split=card.splits[split])


def _open_image_folder(card: Card, split: str, root: Path | None) -> DataSource:
    folder = find_data(card, root) / card.splits[split]
    if not folder.is_dir():
        there = ", ".join(name for name, below in card.splits.items() if (folder.parent / below).is_dir())
        raise NotFoundError(
            f"data set {card.name!r}: no folder {folder} for split {split!r}; there is {there or 'no split'}",
            hint=f"--split or, for the rows to evaluate on, --eval-split names another: {there}"
            if there
            else obtain_text(card, root),
        )
    source: DataSource = open_image_folder(folder, name=card.name, split=split)
    return source


def _open_npz(card: Card, split: str, root: Path | None) -> ArraySource:
    source = open_npz(find_data(card, root), name=card.name, split=card.splits[split], num_classes=card.num_classes)
    source.split = split
    return source


def _open_text(card: Card, split: str, root: Path | None) -> TokenSource:
    folder = find_data(card, root)
    first = next(iter(card.splits))
    return open_text(
        folder / card.splits[split], vocabulary_from=folder / card.splits[first], name=card.name, split=split
    )


def _open_tokens(card: Card, split: str, root: Path | None) -> TokenSource:
    path = find_data(card, root)
    source = open_token_file(path, name=card.name, split=card.splits[split], num_classes=card.num_classes)
    source.split = split
    return source


_OPENERS: Mapping[str, Callable[[Card, str, Path | None], DataSource]] = {
    "cifar10": _open_cifar10,
    "cifar100": _open_cifar100,
    "fashion-mnist": _open_fashion_mnist,
    "digit-pairs": _open_digit_pairs,
    "image-folder": _open_image_folder,
    "npz": _open_npz,
    "text": _open_text,
    "tokens": _open_tokens,
}
