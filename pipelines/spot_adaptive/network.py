"""A network cut at the spots where distillation may happen, and what maps one network's values to another's.

Spots are numbered as in the paper: 1, 2 and 3 are the ends of the three stages, 4 is the penultimate features; 0 is the
input and 5 the logits. A network without three known stages has the spots 0, 4 and 5 only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdcache.errors import ConfigError
from kdcache.models.head import find_head
from kdcache.models.stages import stages_of

INPUT, LAST_MAP, PENULTIMATE, LOGITS = 0, 3, 4, 5


class SplitNetwork:
    """Runs a network from any of its spots to any later one.

    Args:
        module: the network; its modes are the caller's.
        example: a small input batch, to find the last layer.

    Raises:
        ConfigError: no linear layer makes the network's logits.
    """

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        stages = stages_of(module)
        self.module = module
        self._stages = stages if len(stages) == LOGITS else ()
        if not self._stages:
            head = find_head(module, example)
            if head is None:
                raise ConfigError("no linear layer makes this network's logits; expected one")
            self._tail = module.get_submodule(head.name)

    def run(self, value: Tensor, start: int, stop: int) -> Tensor:
        """The value at spot `stop` of a network that has `value` (B, ...) at spot `start`.

        Raises:
            ConfigError: the network is not cut at one of them.
        """
        return self.visit(value, start, (stop,))[stop]

    def visit(self, value: Tensor, start: int, stops: Sequence[int]) -> dict[int, Tensor]:
        """The values at several spots on the way, by spot; one pass.

        Raises:
            ConfigError: the network is not cut at one of them.
        """
        if not self._stages:
            return self._visit_uncut(value, start, stops)
        seen = {start: value}
        for spot in range(start, max(stops)):
            seen[spot + 1] = self._stages[spot](seen[spot])
        return {spot: seen[spot] for spot in stops}

    def _visit_uncut(self, value: Tensor, start: int, stops: Sequence[int]) -> dict[int, Tensor]:
        for spot in (start, *stops):
            if spot not in (INPUT, PENULTIMATE, LOGITS):
                raise ConfigError(
                    f"{type(self.module).__name__} has no spot {spot}: it is not a network of three stages",
                    hint="use a CIFAR ResNet, wide ResNet or ShuffleNet, or one of rkd, pkt, cc, crd",
                )
        if start == PENULTIMATE:
            return {PENULTIMATE: value, LOGITS: self._tail(value)}
        seen: list[Tensor] = []
        handle = self._tail.register_forward_pre_hook(lambda _layer, given: seen.append(given[0]))
        try:
            logits: Tensor = self.module(value)
        finally:
            handle.remove()
        return {INPUT: value, PENULTIMATE: seen[-1], LOGITS: logits}

    def shapes(self, example: Tensor, spots: Sequence[int]) -> dict[int, tuple[int, ...]]:
        """Shape of one row's value at each spot, from a forward pass in eval mode; modes are left as they were."""
        was_training = self.module.training
        self.module.eval()
        with torch.no_grad():
            values = self.visit(example, INPUT, spots)
        self.module.train(was_training)
        return {spot: tuple(value.shape[1:]) for spot, value in values.items()}


def adapter(source: Sequence[int], target: Sequence[int]) -> nn.Module:
    """What maps one network's value at a spot to the other's, as large as the other's.

    Vectors: a linear layer. Maps: a 1x1 convolution, 3x3 with stride 2 to half the side, or a transposed 4x4 with
    stride 2 to twice the side, each with batch norm and ReLU.

    Args:
        source, target: (D,) each, or (C, H, W) each.

    Raises:
        ConfigError: the sides are neither equal nor one twice the other.

    Source: Song et al. 2022, arXiv:2205.03399, as METHODS section 7 records it.
    """
    if len(source) == 1 and len(target) == 1:
        return nn.Linear(source[0], target[0])
    if len(source) == len(target) == 3:
        convolution: nn.Module | None = None
        if source[1:] == target[1:]:
            convolution = nn.Conv2d(source[0], target[0], 1, bias=False)
        elif [2 * side for side in target[1:]] == list(source[1:]):
            convolution = nn.Conv2d(source[0], target[0], 3, stride=2, padding=1, bias=False)
        elif [2 * side for side in source[1:]] == list(target[1:]):
            convolution = nn.ConvTranspose2d(source[0], target[0], 4, stride=2, padding=1, bias=False)
        if convolution is not None:
            return nn.Sequential(convolution, nn.BatchNorm2d(target[0]), nn.ReLU())
    raise ConfigError(
        f"no adapter from {tuple(source)} to {tuple(target)}: expected vectors, or maps of equal, half or double side",
        hint="choose a student whose stages end with maps of the teacher's size",
    )
