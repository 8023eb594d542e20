"""Small networks for the embedded sample, synthetic data and tests; they fit any input shape. Architectures only."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn


class Mlp(nn.Module):
    """Fully connected layers with ReLU over the flattened input.

    Args:
        input_shape: shape of one example; (C, H, W) or (D,).
        hidden: widths of the hidden layers, at least one.
        num_classes: K.
    """

    def __init__(self, input_shape: Sequence[int], hidden: Sequence[int], num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = math.prod(input_shape)
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.features = nn.Sequential(nn.Flatten(), *layers)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Examples (B, *input_shape) float32 -> logits (B, K)."""
        logits: Tensor = self.fc(self.features(x))
        return logits


class SmallCnn(nn.Module):
    """Three 3x3 convolutions, two poolings and a hidden layer; keeps positions, which digit pairs need.

    Args:
        input_shape: (C, H, W), at least 4 pixels a side.
        width: channels of the first two convolutions; the third has twice as many.
        num_classes: K.
    """

    def __init__(self, input_shape: Sequence[int], width: int, num_classes: int) -> None:
        super().__init__()
        channels, height, columns = input_shape
        self.features = nn.Sequential(
            *_conv(channels, width),
            *_conv(width, width),
            nn.MaxPool2d(2),
            *_conv(width, 2 * width),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * (height // 4) * (columns // 4), 4 * width),
            nn.ReLU(),
        )
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) float32 -> logits (B, K)."""
        logits: Tensor = self.fc(self.features(x))
        return logits


def _conv(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
