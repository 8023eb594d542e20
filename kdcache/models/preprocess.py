"""The deterministic part of a model's input: resize, centre crop, scale, normalise. No random augmentation (views/).

Two steps, so that a loader can run the first per example in a worker and the second per batch on any device:
`per_example` brings a uint8 image to the model's size, `batch` turns uint8 into normalised float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as image_functional

from kdcache.errors import ConfigError
from kdcache.specs import PreprocessingSpec

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


class Preprocessing:
    """What a model expects, and how to get there.

    Args:
        spec: resize of the shorter side and centre crop in pixels, mean and standard deviation of x/255.
        function: a user's own callable, uint8 (C, H, W) -> float32 of any shape; it replaces everything else.
    """

    def __init__(self, spec: PreprocessingSpec, function: Callable[[Tensor], Tensor] | None = None) -> None:
        if spec.interpolation not in INTERPOLATIONS:
            raise ConfigError(
                f"preprocessing: interpolation {spec.interpolation!r} is unknown; expected one of {INTERPOLATIONS}"
            )
        for name, pixels in (("resize", spec.resize), ("crop", spec.crop)):
            if pixels is not None and pixels < 1:
                raise ConfigError(f"preprocessing: {name} must be at least 1 pixel, found {pixels}")
        self.spec = spec
        self._numbers = spec
        self._function = function

    def named(self, code: str) -> Preprocessing:
        """The same preprocessing, identified by the user's file that made it instead of by its numbers."""
        renamed = Preprocessing(self._numbers, self._function)
        renamed.spec = PreprocessingSpec(code=code)
        return renamed

    @property
    def spatial(self) -> bool:
        """Whether `per_example` does anything; False lets a loader skip it."""
        return self._function is not None or self._numbers.resize is not None or self._numbers.crop is not None

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one example after `per_example`; (C, H, W) in, (C, h, w) out, other shapes unchanged."""
        if self._function is not None:
            return tuple(self._function(torch.zeros(input_shape, dtype=torch.uint8)).shape)
        if len(input_shape) != 3 or not self.spatial:
            return input_shape
        return tuple(self.per_example(torch.zeros(input_shape, dtype=torch.uint8)).shape)

    def per_example(self, image: Tensor) -> Tensor:
        """Bring one example to the model's size.

        Args:
            image: uint8 (C, H, W); any other dtype passes through.

        Returns:
            uint8 (C, h, w), or what the user's callable returns.

        Raises:
            ConfigError: the user's callable did not return a floating-point tensor.
        """
        if image.dtype != torch.uint8:
            return image
        if self._function is not None:
            return self._call(image)
        if self._numbers.resize is not None:
            mode = InterpolationMode(self._numbers.interpolation)
            antialias = self._numbers.interpolation != "nearest"
            image = image_functional.resize(image, [self._numbers.resize], interpolation=mode, antialias=antialias)
        if self._numbers.crop is not None:
            image = image_functional.center_crop(image, [self._numbers.crop, self._numbers.crop])
        return image

    def squash(self, box: Tensor, size: tuple[int, int]) -> Tensor:
        """Bring a crop box of any size and aspect ratio to exactly the model's input, without cutting it again.

        Args:
            box: uint8 (C, H, W), cut from an image.
            size: height and width of that image: the input of a model that takes images as they are.

        Returns:
            uint8 (C, h, w): the model's crop, else (when the model does not resize either) the image's own size. What a
            user's callable or a shorter side without a crop makes of the box is theirs.
        """
        if self._function is not None or (self._numbers.crop is None and self._numbers.resize is not None):
            return self.per_example(box)
        target = list(size) if self._numbers.crop is None else [self._numbers.crop, self._numbers.crop]
        mode = InterpolationMode(self._numbers.interpolation)
        antialias = self._numbers.interpolation != "nearest"
        sized: Tensor = image_functional.resize(box, target, interpolation=mode, antialias=antialias)
        return sized

    def batch(self, inputs: Tensor) -> Tensor:
        """Scale and normalise a batch on its own device.

        Args:
            inputs: uint8 (B, C, h, w), or numbers (B, ...) that pass through.

        Returns:
            float32 (B, C, h, w); int64 for integers wider than uint8 (tokens), float32 for other numbers.

        Raises:
            ConfigError: the images' channels are not those of the mean.
        """
        if inputs.dtype != torch.uint8:
            return inputs.long() if not inputs.dtype.is_floating_point else inputs.float()
        scaled = inputs.to(torch.float32).div_(255.0)
        if not self._numbers.mean:
            return scaled
        if len(self._numbers.mean) not in (1, inputs.shape[1]):
            raise ConfigError(
                f"preprocessing has {len(self._numbers.mean)} means, the images have {inputs.shape[1]} channels",
                hint="use a model or card made for these images",
            )
        mean = torch.tensor(self._numbers.mean, dtype=torch.float32, device=inputs.device).view(1, -1, 1, 1)
        std = torch.tensor(self._numbers.std, dtype=torch.float32, device=inputs.device).view(1, -1, 1, 1)
        return scaled.sub_(mean).div_(std)

    def _call(self, image: Tensor) -> Tensor:
        assert self._function is not None
        result = self._function(image)
        if not isinstance(result, Tensor) or not result.dtype.is_floating_point:
            found = result.dtype if isinstance(result, Tensor) else type(result).__name__
            raise ConfigError(
                f"preprocessing {self.spec.code!r}: expected a floating-point tensor for a uint8 (C, H, W) image, "
                f"found {found}"
            )
        return result.to(torch.float32)
