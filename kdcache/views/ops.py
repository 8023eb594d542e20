"""The operations a view policy may name: typed, validated parameters and the fields their outcomes are stored in.

An operation here is data. Drawing its outcome is `sampling.py`, changing pixels is `pixels.py`, mixing two inputs is
`mixing.py`. No torch and no random numbers in this module.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from kdcache.canonical import from_json, to_json
from kdcache.errors import ConfigError, CorruptStoreError
from kdcache.nearest import did_you_mean

Fields = tuple[tuple[str, str], ...]  # (name, little-endian numpy dtype) of each stored number

# What RandAugment and TrivialAugment choose from; a stored id is a position in this list, so it only ever grows.
AUGMENTATIONS = (
    "identity",
    "shear-x",
    "shear-y",
    "translate-x",
    "translate-y",
    "rotate",
    "brightness",
    "colour",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "auto-contrast",
    "equalize",
)
BOX_UNITS = 255  # erased and pasted boxes have edges in 1/255 of the image: 4 bytes, the same box at any resolution


def _check(holds: bool, op: object, what: str) -> None:
    if not holds:
        raise ConfigError(f"view op {getattr(op, 'NAME', op)!r}: {what}; found {to_json(op)}")


def _check_range(op: object, name: str, low: float, high: float) -> None:
    pair = getattr(op, name)
    _check(
        len(pair) == 2 and low <= pair[0] <= pair[1] <= high,
        op,
        f"{name} must be two rising numbers in [{low}, {high}]",
    )


def _check_probability(op: Any) -> None:
    _check(0.0 <= op.probability <= 1.0, op, "probability must be in [0, 1]")


def _check_fill(op: Any) -> None:
    allowed = len(op.fill) in (1, 3) and all(0 <= value <= 255 for value in op.fill)
    _check(allowed, op, "fill must be 1 or 3 numbers from 0 to 255")


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """A box of random area and aspect ratio, cut at the source's resolution (Szegedy et al. 2014's crop).

    `scale` bounds the box's share of the area, `ratio` its width over height. With `size` 0 the box keeps its pixels
    and each model resizes it to its own input; otherwise the view itself is resized to (size, size), bilinear.
    """

    NAME: ClassVar[str] = "random-resized-crop"
    FIELDS: ClassVar[Fields] = (("top", "<u2"), ("left", "<u2"), ("height", "<u2"), ("width", "<u2"))
    scale: tuple[float, ...] = (0.08, 1.0)
    ratio: tuple[float, ...] = (0.75, 4 / 3)
    size: int = 0

    def __post_init__(self) -> None:
        _check_range(self, "scale", 1e-6, 1.0)
        _check_range(self, "ratio", 1e-3, 1e3)
        # torch's uint8 resize fails on an output of one pixel (2.15: an internal assertion), so 1 is not offered.
        _check(self.size == 0 or 2 <= self.size <= 0xFFFF, self, "size must be 0 or 2 to 65535 pixels")


@dataclass(frozen=True, kw_only=True)
class PadCrop:
    """Zero padding on all four sides, then a crop of the original size at a random offset (the CIFAR crop)."""

    NAME: ClassVar[str] = "pad-crop"
    FIELDS: ClassVar[Fields] = (("top", "u1"), ("left", "u1"))
    padding: int = 4

    def __post_init__(self) -> None:
        _check(1 <= self.padding <= 127, self, "padding must be 1 to 127 pixels")


@dataclass(frozen=True, kw_only=True)
class HorizontalFlip:
    """Left and right exchanged with a probability."""

    NAME: ClassVar[str] = "horizontal-flip"
    FIELDS: ClassVar[Fields] = (("flipped", "u1"),)
    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self)


@dataclass(frozen=True, kw_only=True)
class ColourJitter:
    """Brightness, contrast, saturation by factors in [max(0, 1 - x), 1 + x], hue by [-hue, hue], in random order.

    Factors have 256 levels, fixed when drawn. `probability` is the chance that anything is changed at all.
    """

    NAME: ClassVar[str] = "colour-jitter"
    FIELDS: ClassVar[Fields] = tuple((n, "u1") for n in ("order", "brightness", "contrast", "saturation", "hue"))
    SKIPPED: ClassVar[int] = 255  # an `order` outside the 24 permutations: nothing is changed
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            _check(0.0 <= getattr(self, name) <= 10.0, self, f"{name} must be in [0, 10]")
        _check(0.0 <= self.hue <= 0.5, self, "hue must be in [0, 0.5]")
        _check_probability(self)


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """`num_ops` random augmentations at one magnitude (Cubuk et al. 2020, arXiv:1909.13719; torchvision's list)."""

    NAME: ClassVar[str] = "rand-augment"
    num_ops: int = 2
    magnitude: int = 9
    bins: int = 31
    interpolation: Literal["nearest", "bilinear"] = "nearest"
    fill: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        _check(1 <= self.num_ops <= 16, self, "num_ops must be 1 to 16")
        _check(
            2 <= self.bins <= 256 and 0 <= self.magnitude < self.bins,
            self,
            "magnitude must be in [0, bins), bins <= 256",
        )
        _check_fill(self)

    @property
    def FIELDS(self) -> Fields:  # noqa: N802 - the other ops have a class constant of this name
        """One byte per augmentation: its id, and 128 when its magnitude is negative."""
        return tuple((f"choice{i}", "u1") for i in range(self.num_ops))


@dataclass(frozen=True, kw_only=True)
class TrivialAugment:
    """One random augmentation at a random, wide magnitude (arXiv:2103.10158; torchvision's list and ranges)."""

    NAME: ClassVar[str] = "trivial-augment"
    FIELDS: ClassVar[Fields] = (("choice", "u1"), ("magnitude", "u1"))
    bins: int = 31
    interpolation: Literal["nearest", "bilinear"] = "nearest"
    fill: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        _check(2 <= self.bins <= 256, self, "bins must be 2 to 256")
        _check_fill(self)


@dataclass(frozen=True, kw_only=True)
class RandomErasing:
    """A random box painted with `fill` (Zhong et al. 2017, arXiv:1708.04896), before normalisation."""

    NAME: ClassVar[str] = "random-erasing"
    FIELDS: ClassVar[Fields] = tuple((n, "u1") for n in ("top", "left", "bottom", "right"))
    probability: float = 0.25
    scale: tuple[float, ...] = (0.02, 0.33)
    ratio: tuple[float, ...] = (0.3, 3.3)
    fill: tuple[int, ...] = (128,)

    def __post_init__(self) -> None:
        _check_probability(self)
        _check_range(self, "scale", 1e-6, 1.0)
        _check_range(self, "ratio", 1e-3, 1e3)
        _check_fill(self)


@dataclass(frozen=True, kw_only=True)
class UserTransform:
    """A callable `(image, generator) -> image` from the user's own file, replayed from a stored 32-bit seed.

    The one exception to stored outcomes. `code` is `NAME.py:factory` without folders, because a path is not part of
    what the view looks like; `digest` is the file's sha256, which is.
    """

    NAME: ClassVar[str] = "user-transform"
    FIELDS: ClassVar[Fields] = (("seed", "<u4"),)
    code: str
    digest: str

    def __post_init__(self) -> None:
        _check(re.fullmatch(r"[^/\\:]+\.py:\w+", self.code) is not None, self, "code must be NAME.py:factory")
        _check(re.fullmatch(r"[0-9a-f]{64}", self.digest) is not None, self, "digest must be a hex sha256")


@dataclass(frozen=True, kw_only=True)
class Mixup:
    """lambda * input + (1 - lambda) * partner's, lambda from Beta(alpha, alpha) (arXiv:1710.09412); U[0,1] at 1."""

    NAME: ClassVar[str] = "mixup"
    FIELDS: ClassVar[Fields] = (("partner", "<u4"), ("weight", "<u2"))
    alpha: float = 1.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        _check(0.0 < self.alpha <= 8.0, self, "alpha must be in (0, 8]")
        _check_probability(self)


@dataclass(frozen=True, kw_only=True)
class Cutmix:
    """A box of the partner's input pasted in; 1 - lambda is the box's share of the area (arXiv:1905.04899)."""

    NAME: ClassVar[str] = "cutmix"
    FIELDS: ClassVar[Fields] = (("partner", "<u4"), *((n, "u1") for n in ("top", "left", "bottom", "right")))
    alpha: float = 1.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        _check(0.0 < self.alpha <= 8.0, self, "alpha must be in (0, 8]")
        _check_probability(self)


@dataclass(frozen=True, kw_only=True)
class MixupOrCutmix:
    """One of the two for each row: cutmix with probability `switch`, else mixup."""

    NAME: ClassVar[str] = "mixup-or-cutmix"
    FIELDS: ClassVar[Fields] = (
        ("partner", "<u4"),
        ("weight", "<u2"),
        *((n, "u1") for n in ("top", "left", "bottom", "right")),
    )
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    switch: float = 0.5
    probability: float = 1.0

    def __post_init__(self) -> None:
        for name in ("mixup_alpha", "cutmix_alpha"):
            _check(0.0 < getattr(self, name) <= 8.0, self, f"{name} must be in (0, 8]")
        _check(0.0 <= self.switch <= 1.0, self, "switch must be in [0, 1]")
        _check_probability(self)


MixOp = Mixup | Cutmix | MixupOrCutmix
Augment = RandAugment | TrivialAugment
Op = RandomResizedCrop | PadCrop | HorizontalFlip | ColourJitter | Augment | RandomErasing | UserTransform | MixOp

_KINDS: tuple[type[Op], ...] = (
    RandomResizedCrop,
    PadCrop,
    HorizontalFlip,
    ColourJitter,
    RandAugment,
    TrivialAugment,
    RandomErasing,
    UserTransform,
    Mixup,
    Cutmix,
    MixupOrCutmix,
)
OPS: Mapping[str, type[Op]] = {kind.NAME: kind for kind in _KINDS}


def op_to_json(op: Op) -> dict[str, Any]:
    """An op as the plain mapping `ViewSpec.ops` holds: its name under "op" and every parameter."""
    return {"op": op.NAME, **to_json(op)}


def op_from_json(value: Any, *, where: str) -> Op:
    """Build an op from `ViewSpec.ops` or a TOML table, checking every key.

    Raises:
        ConfigError: an unknown op (the nearest names are given), an unknown or wrong parameter.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a table with an 'op', found {type(value).__name__}")
    name = str(value.get("op"))
    if name not in OPS:
        raise ConfigError(f"{where}: unknown view op {name!r}", hint=did_you_mean(name, OPS))
    plain = {key: to_json(item) for key, item in value.items() if key != "op"}
    try:
        return from_json(OPS[name], plain, where=f"{where} ({name})")
    except CorruptStoreError as error:
        raise ConfigError(error.message) from error


def check_order(ops: tuple[Op, ...]) -> None:
    """Refuse an order of ops that has no meaning.

    Raises:
        ConfigError: a mixing op that is not the last one, or a user's transform followed by anything but mixing (it
            may change the image's size, which later ops would have to know when they are drawn).
    """
    for position, op in enumerate(ops[:-1]):
        after = [later.NAME for later in ops[position + 1 :]]
        if isinstance(op, MixOp):
            raise ConfigError(f"view ops: {op.NAME!r} must be the last op, found {after} after it")
        if isinstance(op, UserTransform) and not isinstance(ops[position + 1], MixOp):
            raise ConfigError(f"view ops: only mixing may follow {op.NAME!r}, found {after}")


def log_spaced(bounds: tuple[float, ...], count: int) -> list[float]:
    """`count` numbers from bounds[0] to bounds[1], evenly spaced in their logarithm; scalar libm only."""
    low, high = math.log(bounds[0]), math.log(bounds[1])
    return [math.exp(low + (high - low) * i / (count - 1)) for i in range(count)]
