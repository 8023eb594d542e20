"""Pixels: each op against torchvision's own transform or functional at the recorded outcome."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as F

from kdcache.errors import ConfigError
from kdcache.views.ops import (
    AUGMENTATIONS,
    ColourJitter,
    HorizontalFlip,
    Op,
    PadCrop,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    TrivialAugment,
)
from kdcache.views.pixels import augmentation_strength, box_pixels
from kdcache.views.policy import ViewPolicy

# kdcache's names and torchvision's, in kdcache's order.
TORCHVISION_NAMES = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)


def _image(channels: int = 3, height: int = 30, width: int = 41, seed: int = 0) -> torch.Tensor:
    """A smooth image with some noise: plain noise would hide resampling errors in equalize and auto-contrast."""
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(20, 200, height)[:, None] + torch.linspace(0, 40, width)[None, :]
    noise = torch.randint(0, 15, (channels, height, width), generator=generator)
    return (ramp + noise).clamp(0, 255).to(torch.uint8)


def _outcome(op: Op, *numbers: int) -> np.void:
    policy = ViewPolicy(ops=(op,))
    outcome = policy.unpack(np.zeros((1, policy.width), dtype=np.uint8)).copy()
    outcome[0] = numbers
    return outcome[0]


def _apply(op: Op, image: torch.Tensor, *numbers: int) -> torch.Tensor:
    return ViewPolicy(ops=(op,)).apply(image, _outcome(op, *numbers))


def test_a_crop_box_resized_is_torchvisions_resized_crop() -> None:
    image = _image()
    expected = F.resized_crop(image, 3, 5, 20, 11, [16, 16], antialias=True)
    assert torch.equal(_apply(RandomResizedCrop(size=16), image, 3, 5, 20, 11), expected)
    assert torch.equal(_apply(RandomResizedCrop(), image, 3, 5, 20, 11), image[:, 3:23, 5:16])


@pytest.mark.parametrize(("top", "left"), [(0, 0), (8, 8), (4, 4), (1, 7)])
def test_pad_crop_is_torchvisions_pad_then_crop(top: int, left: int) -> None:
    image = _image()
    expected = F.crop(F.pad(image, [4]), top, left, 30, 41)
    assert torch.equal(_apply(PadCrop(), image, top, left), expected)


def test_flip() -> None:
    assert torch.equal(_apply(HorizontalFlip(), _image(), 1), F.horizontal_flip(_image()))
    assert torch.equal(_apply(HorizontalFlip(), _image(), 0), _image())


def test_colour_jitter_applies_its_factors_in_the_recorded_order() -> None:
    op, image = ColourJitter(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1), _image()
    image[1] = image[1] // 2
    expected = F.adjust_brightness(image, 0.6)
    expected = F.adjust_contrast(expected, 1.3)
    expected = F.adjust_saturation(expected, 0.8 + 0.4 * 51 / 255)
    expected = F.adjust_hue(expected, -0.1)
    assert torch.equal(_apply(op, image, 0, 0, 255, 51, 0), expected)
    backwards = F.adjust_hue(image, -0.1)
    backwards = F.adjust_saturation(backwards, 0.8 + 0.4 * 51 / 255)
    backwards = F.adjust_contrast(backwards, 1.3)
    backwards = F.adjust_brightness(backwards, 0.6)
    assert torch.equal(_apply(op, image, 23, 0, 255, 51, 0), backwards)
    assert torch.equal(_apply(op, image, ColourJitter.SKIPPED, 1, 2, 3, 4), image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("choice", range(len(AUGMENTATIONS)))
@pytest.mark.parametrize("wide", [False, True])
def test_augmentations_are_torchvisions(choice: int, negative: bool, wide: bool, channels: int) -> None:
    op = TrivialAugment() if wide else RandAugment(num_ops=1, magnitude=9)
    reference = T.TrivialAugmentWide() if wide else T.RandAugment()
    image, bin_, name = _image(channels), 9, TORCHVISION_NAMES[choice]
    magnitudes, signed = reference._AUGMENTATION_SPACE[name]
    table = magnitudes(31, 30, 41)
    magnitude = 0.0 if table is None else float(table[bin_])
    ours = augmentation_strength(op, AUGMENTATIONS[choice], bin_, height=30, width=41)
    assert abs(ours - magnitude) < 1e-4
    expected = reference._apply_image_or_video_transform(
        image, name, -ours if negative and signed else ours, reference.interpolation, reference._fill
    )
    numbers = (choice | negative << 7, bin_) if wide else (choice | negative << 7,)
    assert torch.equal(_apply(op, image, *numbers), expected)


def test_fill_and_interpolation_reach_the_kernels() -> None:
    op = TrivialAugment(fill=(9, 8, 7), interpolation="bilinear")
    found = _apply(op, _image(), AUGMENTATIONS.index("rotate"), 30)
    expected = F.rotate(_image(), 135.0, interpolation=T.InterpolationMode.BILINEAR, fill=[9.0, 8.0, 7.0])
    assert torch.equal(found, expected)
    assert found[:, 0, 0].tolist() == [9, 8, 7]
    with pytest.raises(ConfigError, match="fill has 3 values"):
        _apply(op, _image(1), AUGMENTATIONS.index("rotate"), 30)


def test_erasing_paints_the_box_and_leaves_the_rest_and_the_source() -> None:
    image = _image(height=51, width=85)
    found = _apply(RandomErasing(fill=(1, 2, 3)), image, 5, 6, 50, 60)
    expected = image.clone()
    expected[:, 1:10, 2:20] = torch.tensor([1, 2, 3], dtype=torch.uint8)[:, None, None]
    assert torch.equal(found, expected)
    assert torch.equal(image, _image(height=51, width=85))
    assert torch.equal(_apply(RandomErasing(), image, 0, 0, 0, 0), image)


def test_boxes_in_units_cover_the_image_and_split_without_gap_or_overlap() -> None:
    for length in (1, 7, 32, 224, 1000):
        assert box_pixels(0, 255, length) == slice(0, length)
        for edge in range(0, 256, 17):
            assert box_pixels(0, edge, length).stop == box_pixels(edge, 255, length).start


def test_colour_ops_need_colour_or_grey() -> None:
    with pytest.raises(ConfigError, match="1 or 3 channels"):
        _apply(RandAugment(num_ops=1), _image(4), 0)
    assert _apply(HorizontalFlip(), _image(4), 1).shape == (4, 30, 41)
