"""ResNets and wide ResNets for 32-pixel images, in the forms the distillation papers share. Architectures only.

Sources: He et al. 2016 (arXiv:1512.03385, section 4.2) with projection shortcuts, as in the public benchmark code of
Tian et al. 2020 (arXiv:1910.10699); Zagoruyko and Komodakis 2016 (arXiv:1605.07146).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside an identity, or beside a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/stride, W/stride), float32."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return functional.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A ResNet of depth 6n+2 with three stages.

    Args:
        depth: 8, 14, 20, 32, 44, 56, 110, ...
        widths: channels of the stem and of the three stages.
        num_classes: K.
        channels: channels of the images.
    """

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int, channels: int) -> None:
        super().__init__()
        assert (depth - 2) % 6 == 0, depth
        blocks = (depth - 2) // 6
        self.stem = nn.Sequential(_conv3x3(channels, widths[0]), nn.BatchNorm2d(widths[0]), nn.ReLU())
        self.stage1 = _stage(blocks, widths[0], widths[1], stride=1)
        self.stage2 = _stage(blocks, widths[1], widths[2], stride=2)
        self.stage3 = _stage(blocks, widths[2], widths[3], stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) float32 -> logits (B, K)."""
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def _stage(blocks: int, inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


class PreActivationBlock(nn.Module):
    """A wide ResNet's block: BN and ReLU before each convolution; a projection starts after the first pair."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.projection = None if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/stride, W/stride), float32."""
        active = functional.relu(self.bn1(x))
        shortcut = x if self.projection is None else self.projection(active)
        out: Tensor = self.conv2(functional.relu(self.bn2(self.conv1(active))))
        return out + shortcut


class WideResNet(nn.Module):
    """A wide ResNet WRN-depth-width without dropout.

    Args:
        depth: 6n+4, for example 16 or 40.
        width: factor on 16, 32 and 64 channels.
        num_classes: K.
        channels: channels of the images.
    """

    def __init__(self, depth: int, width: int, num_classes: int, channels: int) -> None:
        super().__init__()
        assert (depth - 4) % 6 == 0, depth
        blocks = (depth - 4) // 6
        sizes = (16, 16 * width, 32 * width, 64 * width)
        self.stem = _conv3x3(channels, sizes[0])
        stages = []
        for index, stride in enumerate((1, 2, 2)):
            stages.append(PreActivationBlock(sizes[index], sizes[index + 1], stride))
            stages.extend(PreActivationBlock(sizes[index + 1], sizes[index + 1], 1) for _ in range(blocks - 1))
        self.blocks = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(sizes[3])
        self.fc = nn.Linear(sizes[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) float32 -> logits (B, K)."""
        x = functional.relu(self.bn(self.blocks(self.stem(x))))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits
