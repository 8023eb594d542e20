"""The data and the two networks of the faithfulness study, as `file.py:factory` names.

Data: the 20 classes 0, 5, 10, ..., 95 of CIFAR-100 (500 training and 100 test images each), rows in the published
order, labels renumbered 0 to 19. Networks: residual nets behind a stem of stride 2, so that one CPU core trains the
student at about 2,000 images a second. A change to this file makes new stores: its digest is part of their identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from kdcache.datasets.cards import load_card, open_dataset
from kdcache.datasets.source import ArraySource
from kdcache.models.cifar_resnet import BasicBlock
from kdcache.models.preprocess import Preprocessing

STEP = 5  # of 100 classes, every fifth


def data(split: str, root: Path | None) -> ArraySource:
    """The images of every fifth class of CIFAR-100, "train" (10,000) or "test" (2,000)."""
    whole = open_dataset("cifar100", split=split, root=root)
    assert isinstance(whole, ArraySource)
    chosen = np.flatnonzero(whole.labels % STEP == 0)
    return ArraySource(
        whole.examples[chosen],
        whole.labels[chosen] // STEP,
        name="cifar100-every-fifth",
        split=split,
        num_classes=len(whole.class_names) // STEP,
        class_names=whole.class_names[::STEP],
    )


class SmallResNet(nn.Module):
    """A stride-2 stem, then stages of basic blocks, pooling and one linear layer.

    Args:
        stem: channels of the stem, which halves 32 x 32 pixels to 16 x 16.
        stages: (channels, stride, blocks) of each stage.
        num_classes: K.
    """

    def __init__(self, stem: int, stages: Sequence[tuple[int, int, int]], num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU()
        )
        blocks, width = [], stem
        for channels, stride, count in stages:
            for number in range(count):
                blocks.append(BasicBlock(width, channels, stride if number == 0 else 1))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, 32, 32) float32 -> logits (B, K)."""
        logits: Tensor = self.fc(self.blocks(self.stem(x)).mean(dim=(2, 3)))
        return logits


def student(num_classes: int, input_shape: tuple[int, ...]) -> tuple[nn.Module, Preprocessing]:
    """0.07 M parameters: 16 channels at 16 x 16, 32 at 8 x 8, 64 at 4 x 4."""
    return SmallResNet(16, [(32, 2, 1), (64, 2, 1)], num_classes), _as_cifar()


def teacher(num_classes: int, input_shape: tuple[int, ...]) -> tuple[nn.Module, Preprocessing]:
    """0.3 M parameters, wider and at twice the resolution: 32 channels at 16 x 16, 64 at 8 x 8, 128 at 4 x 4."""
    return SmallResNet(32, [(32, 1, 1), (64, 2, 1), (128, 2, 1)], num_classes), _as_cifar()


def _as_cifar() -> Preprocessing:
    return Preprocessing(load_card("cifar100").preprocessing)
