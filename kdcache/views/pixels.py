"""Changing pixels by recorded outcomes: torchvision's v2 kernels on one uint8 image, or on a batch where it pays.

Nothing here draws a random number, except that a user's own transform gets a generator seeded from its outcome.
Mixing two inputs is in `mixing.py`, because it happens after each model's own preprocessing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import assert_never

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode

from kdcache.errors import ConfigError
from kdcache.views.ops import (
    AUGMENTATIONS,
    BOX_UNITS,
    Augment,
    ColourJitter,
    Cutmix,
    HorizontalFlip,
    Mixup,
    MixupOrCutmix,
    Op,
    PadCrop,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    TrivialAugment,
    UserTransform,
)
from kdcache.views.sampling import Outcomes

UserCode = Callable[[Tensor, torch.Generator], Tensor]
BATCHED = (PadCrop, HorizontalFlip)  # ops with a kernel for a whole batch, on any device, with the same pixels
COLOUR_OPS = (ColourJitter, RandAugment, TrivialAugment)

_JITTER_ORDERS = tuple(itertools.permutations(("brightness", "contrast", "saturation", "hue")))
_INTERPOLATION = {"nearest": InterpolationMode.NEAREST, "bilinear": InterpolationMode.BILINEAR}


def check_images(images: Tensor, *, dims: int, ops: Sequence[Op]) -> None:
    """Refuse what views are not defined on.

    Raises:
        ConfigError: not uint8, not `dims` dimensions, or colour ops on other than 1 or 3 channels.
    """
    if images.dtype != torch.uint8 or images.ndim != dims:
        shape = "(C, H, W)" if dims == 3 else "(B, C, H, W)"
        raise ConfigError(
            f"views need uint8 images of shape {shape}, found {images.dtype} of shape {tuple(images.shape)}",
            hint="use --augment none for data that is not images",
        )
    if images.shape[-3] not in (1, 3) and any(isinstance(op, COLOUR_OPS) for op in ops):
        raise ConfigError(f"colour ops need 1 or 3 channels, found {images.shape[-3]}")


def apply_op(op: Op, image: Tensor, outcome: np.void, position: int, user_code: UserCode | None) -> Tensor:
    """One op on one uint8 (C, H, W) image; the result may share memory with `image`."""

    def number(name: str) -> int:
        return int(outcome[f"{position}.{name}"])

    match op:
        case RandomResizedCrop():
            image = F.crop_image(image, number("top"), number("left"), number("height"), number("width"))
            if op.size:
                image = F.resize_image(image, [op.size, op.size], antialias=True)
        case PadCrop():
            image = _shifted(image, op.padding - number("top"), op.padding - number("left"))
        case HorizontalFlip():
            image = F.horizontal_flip_image(image) if number("flipped") else image
        case ColourJitter():
            image = _jitter(op, image, number)
        case RandAugment():
            for i in range(op.num_ops):
                image = _augment(op, image, number(f"choice{i}"), op.magnitude)
        case TrivialAugment():
            image = _augment(op, image, number("choice"), number("magnitude"))
        case RandomErasing():
            image = _erase(op, image, [number(name) for name, _ in op.FIELDS])
        case UserTransform():
            image = _user(op, image, number("seed"), user_code)
        case Mixup() | Cutmix() | MixupOrCutmix():
            pass  # `mixing.mix_batch`, once each model has preprocessed both images
        case _:
            assert_never(op)
    return image


def apply_op_batch(op: Op, images: Tensor, outcomes: Outcomes, position: int) -> Tensor:
    """A `BATCHED` op on uint8 (B, C, H, W) images of any device: bit-equal to `apply_op` image by image."""
    match op:
        case PadCrop():
            return _crop_windows(images, outcomes[f"{position}.top"], outcomes[f"{position}.left"], op.padding)
        case HorizontalFlip():
            both = torch.cat((images, images.flip(-1)))
            chosen = np.arange(len(images)) + len(images) * outcomes[f"{position}.flipped"].astype(np.int64)
            return both.index_select(0, torch.from_numpy(chosen).to(images.device))
        case _:
            raise ConfigError(f"view op {op.NAME!r} has no kernel for a batch")


def _shifted(image: Tensor, down: int, right: int) -> Tensor:
    if abs(down) >= image.shape[-2] or abs(right) >= image.shape[-1]:
        return torch.zeros_like(image)  # the crop is all padding: only where the padding is wider than the image
    # A negative padding cuts: half the time of torchvision's crop_image, which cuts and then pads.
    return torch.nn.functional.pad(image, (right, -right, down, -down))


def _crop_windows(images: Tensor, top: NDArray[np.uint8], left: NDArray[np.uint8], padding: int) -> Tensor:
    """Every crop is a window of the padded batch, gathered at once: no index per pixel."""
    padded, (height, width) = torch.nn.functional.pad(images, [padding] * 4), images.shape[-2:]
    if images.device.type == "cpu":
        # numpy copies a window's rows whole (1.9 us a CIFAR image); torch goes byte by byte (6 us).
        windows = np.lib.stride_tricks.sliding_window_view(padded.numpy(), (height, width), axis=(2, 3))
        return torch.from_numpy(windows[np.arange(len(images)), :, top, left])
    return _crop_windows_any_device(padded, top, left, height, width)


def _crop_windows_any_device(
    padded: Tensor, top: NDArray[np.uint8], left: NDArray[np.uint8], height: int, width: int
) -> Tensor:
    row, column = (torch.from_numpy(corner.astype(np.int64)).to(padded.device) for corner in (top, left))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(padded), device=padded.device), :, row, column]


def _jitter(op: ColourJitter, image: Tensor, number: Callable[[str], int]) -> Tensor:
    order = number("order")
    if order == op.SKIPPED:
        return image
    for name in _JITTER_ORDERS[order]:
        reach = getattr(op, name)
        if not reach:
            continue
        if name == "hue":
            image = F.adjust_hue_image(image, -reach + 2 * reach * number(name) / 255)
            continue
        low, high = max(0.0, 1.0 - reach), 1.0 + reach
        factor = low + (high - low) * number(name) / 255
        image = _FACTOR_KERNELS[name](image, factor)
    return image


_FACTOR_KERNELS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": F.adjust_brightness_image,
    "contrast": F.adjust_contrast_image,
    "saturation": F.adjust_saturation_image,
    "colour": F.adjust_saturation_image,
    "sharpness": F.adjust_sharpness_image,
}


def augmentation_strength(op: Augment, name: str, bin_: int, *, height: int, width: int) -> float:
    """The unsigned magnitude of an augmentation at a bin: torchvision's ranges for RandAugment or TrivialAugmentWide.

    Translations are in pixels, rotations in degrees, solarize in [0, 1] of the brightest value, posterize in bits.
    """
    share = bin_ / (op.bins - 1)
    wide = isinstance(op, TrivialAugment)
    match name:
        case "shear-x" | "shear-y":
            return share * (0.99 if wide else 0.3)
        case "translate-x" | "translate-y":
            return share * (32.0 if wide else 150.0 / 331.0 * (width if name == "translate-x" else height))
        case "rotate":
            return share * (135.0 if wide else 30.0)
        case "brightness" | "colour" | "contrast" | "sharpness":
            return share * (0.99 if wide else 0.9)
        case "posterize":
            return float(round(8 - share * (6 if wide else 4)))
        case "solarize":
            return 1.0 - share
        case _:
            return 0.0


def _augment(op: Augment, image: Tensor, choice: int, bin_: int) -> Tensor:
    name, negative = AUGMENTATIONS[choice & 127], bool(choice >> 7)
    height, width = image.shape[-2:]
    strength = augmentation_strength(op, name, bin_, height=height, width=width)
    signed = -strength if negative else strength
    match name:
        case "identity":
            pass
        case "shear-x" | "shear-y" | "translate-x" | "translate-y":
            image = _affine(op, image, name, signed)
        case "rotate":
            image = F.rotate_image(image, signed, interpolation=_INTERPOLATION[op.interpolation], fill=_fill(op, image))
        case "posterize":
            image = F.posterize_image(image, int(strength))
        case "solarize":
            image = F.solarize_image(image, 255.0 * strength)
        case "auto-contrast":
            image = F.autocontrast_image(image)
        case "equalize":
            image = F.equalize_image(image)
        case _:
            image = _FACTOR_KERNELS[name](image, 1.0 + signed)
    return image


def _affine(op: Augment, image: Tensor, name: str, signed: float) -> Tensor:
    along_x = name.endswith("x")
    shear, translate = [0.0, 0.0], [0, 0]
    if name.startswith("shear"):
        shear[0 if along_x else 1] = math.degrees(math.atan(signed))
    else:
        translate[0 if along_x else 1] = int(signed)
    sheared: Tensor = F.affine_image(
        image,
        angle=0.0,
        translate=translate,
        scale=1.0,
        shear=shear,
        interpolation=_INTERPOLATION[op.interpolation],
        fill=_fill(op, image),
        center=[0, 0] if name.startswith("shear") else None,
    )
    return sheared


def _fill(op: Augment | RandomErasing, image: Tensor) -> list[float] | None:
    """The fill as torchvision wants it; None is its faster path for black."""
    if len(op.fill) == 3 != image.shape[-3]:
        raise ConfigError(f"view op {op.NAME!r}: fill has 3 values, the image has {image.shape[-3]} channels")
    return [float(value) for value in op.fill] if any(op.fill) else None


def _erase(op: RandomErasing, image: Tensor, box: list[int]) -> Tensor:
    top, left, bottom, right = box
    if top == bottom:
        return image
    rows, columns = box_pixels(top, bottom, image.shape[-2]), box_pixels(left, right, image.shape[-1])
    paint = torch.tensor(_fill(op, image) or [0.0]).to(image)[:, None, None]
    erased = image.clone()
    erased[:, rows, columns] = paint
    return erased


def box_pixels(start: int, stop: int, length: int) -> slice:
    """Edges in 1/255 of an image as a slice of its `length` pixels, rounded to nearest in whole numbers."""
    edges = [(2 * edge * length + BOX_UNITS) // (2 * BOX_UNITS) for edge in (start, stop)]
    return slice(*edges)


def _user(op: UserTransform, image: Tensor, seed: int, code: UserCode | None) -> Tensor:
    if code is None:
        raise ConfigError(f"this view replays a transform of {op.code}, whose code was not given", hint=user_hint(op))
    changed = code(image.clone(), torch.Generator().manual_seed(seed))
    if not isinstance(changed, Tensor) or changed.dtype != torch.uint8 or changed.ndim != 3:
        found = f"{changed.dtype} {tuple(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
        raise ConfigError(f"{op.code}: the transform must return a uint8 (C, H, W) tensor, found {found}")
    return changed


def user_hint(op: UserTransform) -> str:
    """What to type when a store's views need the user's own file."""
    return f"give --augment PATH/TO/{op.code}: a store never names code to run"
