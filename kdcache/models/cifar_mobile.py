"""MobileNetV2, ShuffleNetV1 and ShuffleNetV2 for 32-pixel images, as the papers use them. Architectures only.

Sources: Sandler et al. 2018 (arXiv:1801.04381), Zhang et al. 2018 (arXiv:1707.01083), Ma et al. 2018
(arXiv:1807.11164), with the strides and widths of the public benchmark code of Tian et al. 2020 (arXiv:1910.10699).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def _conv_bn(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def _conv_bn_relu(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(*_conv_bn(inputs, outputs, kernel, stride=stride, groups=groups), nn.ReLU())


class InvertedResidual(nn.Module):
    """Expand with 1x1, filter each channel with 3x3, project with 1x1; an identity beside it where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.layers = nn.Sequential(
            _conv_bn_relu(inputs, hidden, 1),
            _conv_bn_relu(hidden, hidden, 3, stride=stride, groups=hidden),
            _conv_bn(hidden, outputs, 1),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/stride, W/stride), float32."""
        out: Tensor = self.layers(x)
        return x + out if self.residual else out


class CifarMobileNetV2(nn.Module):
    """MobileNetV2 with expansion 6.

    Args:
        width: factor on the channels; the papers' student uses 0.5.
        num_classes: K.
        channels: channels of the images.
    """

    # (expansion, channels at width 1, blocks, stride of the first block)
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, width: float, num_classes: int, channels: int) -> None:
        super().__init__()
        inputs = int(32 * width)
        layers: list[nn.Module] = [_conv_bn_relu(channels, inputs, 3, stride=2)]
        for expansion, full_width, blocks, first_stride in self.STAGES:
            outputs = int(full_width * width)
            for block in range(blocks):
                layers.append(InvertedResidual(inputs, outputs, first_stride if block == 0 else 1, expansion))
                inputs = outputs
        last = int(1280 * max(width, 1.0))
        self.features = nn.Sequential(*layers, _conv_bn_relu(inputs, last, 1))
        self.fc = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) float32 -> logits (B, K)."""
        logits: Tensor = self.fc(self.features(x).mean(dim=(2, 3)))
        return logits


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """Deal the channels of `groups` equal groups out like cards: (B, C, H, W) -> the same shape."""
    batch, channels, height, width = x.shape
    dealt = x.view(batch, groups, channels // groups, height, width).transpose(1, 2)
    return dealt.reshape(batch, channels, height, width)


class ShuffleBlockV1(nn.Module):
    """ShuffleNetV1's unit: grouped 1x1, shuffle, 3x3 per channel, grouped 1x1; keeps its input where it halves."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride = stride
        # The first unit sees 24 channels: too few to group (Zhang et al., section 3.2).
        self.groups_in = 1 if inputs == 24 else groups
        branch = outputs - inputs if stride == 2 else outputs
        hidden = branch // 4
        self.reduce = _conv_bn_relu(inputs, hidden, 1, groups=self.groups_in)
        self.filter = _conv_bn_relu(hidden, hidden, 3, stride=stride, groups=hidden)
        self.expand = _conv_bn(hidden, branch, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/stride, W/stride), float32."""
        out = self.expand(self.filter(shuffle_channels(self.reduce(x), self.groups_in)))
        if self.stride == 2:
            shortcut = functional.avg_pool2d(x, 3, stride=2, padding=1)
            return functional.relu(torch.cat((out, shortcut), dim=1))
        return functional.relu(out + x)


class CifarShuffleNetV1(nn.Module):
    """ShuffleNetV1 with 3 groups and 240, 480 and 960 channels."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        inputs = 24
        layers: list[nn.Module] = [_conv_bn_relu(channels, inputs, 1)]
        for outputs, blocks in ((240, 4), (480, 8), (960, 4)):
            for block in range(blocks):
                layers.append(ShuffleBlockV1(inputs, outputs, 2 if block == 0 else 1, groups=3))
                inputs = outputs
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) float32 -> logits (B, K)."""
        logits: Tensor = self.fc(self.features(x).mean(dim=(2, 3)))
        return logits


class ShuffleBlockV2(nn.Module):
    """ShuffleNetV2's unit: half of the channels pass through; where it halves the image both branches convolve."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        half = outputs // 2
        branch_inputs = inputs if stride == 2 else half
        self.branch = nn.Sequential(
            _conv_bn_relu(branch_inputs, half, 1),
            _conv_bn(half, half, 3, stride=stride, groups=half),
            _conv_bn_relu(half, half, 1),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            per_channel = _conv_bn(inputs, inputs, 3, stride=2, groups=inputs)
            self.shortcut = nn.Sequential(per_channel, _conv_bn_relu(inputs, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/stride, W/stride), float32."""
        left, right = (x, x) if self.stride == 2 else x.chunk(2, dim=1)
        return shuffle_channels(torch.cat((self.shortcut(left), self.branch(right)), dim=1), 2)


class CifarShuffleNetV2(nn.Module):
    """ShuffleNetV2 at width 1: 116, 232 and 464 channels, then 1024."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        inputs = 24
        layers: list[nn.Module] = [_conv_bn_relu(channels, inputs, 1)]
        for outputs, blocks in ((116, 4), (232, 8), (464, 4)):
            for block in range(blocks):
                layers.append(ShuffleBlockV2(inputs, outputs, 2 if block == 0 else 1))
                inputs = outputs
        self.features = nn.Sequential(*layers, _conv_bn_relu(inputs, 1024, 1))
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) float32 -> logits (B, K)."""
        logits: Tensor = self.fc(self.features(x).mean(dim=(2, 3)))
        return logits
