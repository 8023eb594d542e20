"""A built-in CIFAR network as the stages that the feature distillation papers cut it into.

Run one after the other the stages are the network, bit for bit. What a stage reads may come from elsewhere, which is
what spot-adaptive distillation does. `features.stage_layers` names the same places.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from kdcache.models.cifar_mobile import CifarMobileNetV2, CifarShuffleNetV1, CifarShuffleNetV2
from kdcache.models.cifar_resnet import CifarResNet, WideResNet
from kdcache.models.cifar_vgg import CifarVgg
from kdcache.models.features import stage_layers

Stage = Callable[[Tensor], Tensor]
_LAST_NUMBER = re.compile(r"(\d+)$")


def stages_of(module: nn.Module) -> tuple[Stage, ...]:
    """The stages of a network: S that end with a feature map, one that pools the last, and the linear head.

    Args:
        module: a built-in CIFAR network; its layers are used, not copied, in the mode they are in.

    Returns:
        S + 2 functions, (B, C, H, W) -> (B, C', H', W') for the first S, then -> (B, D), then -> (B, K); empty for
        other models.
    """
    if isinstance(module, CifarResNet):
        first = nn.Sequential(module.stem, module.stage1)
        return first, module.stage2, module.stage3, _pooled, module.fc
    if isinstance(module, WideResNet):
        blocks = _cut(module.blocks, _ends(module))[:-1]
        return nn.Sequential(module.stem, blocks[0]), *blocks[1:], partial(_normalised_and_pooled, module.bn), module.fc
    if isinstance(module, CifarVgg | CifarShuffleNetV1 | CifarShuffleNetV2 | CifarMobileNetV2):
        *parts, rest = _cut(module.features, _ends(module))
        return *parts, partial(_rest_and_pooled, rest), module.fc
    return ()


def _ends(module: nn.Module) -> list[int]:
    """Number of the last layer of each stage in the network's one sequence of layers."""
    found = [_LAST_NUMBER.search(layer) for layer in stage_layers(module)]
    return [int(match[1]) for match in found if match is not None]


def _cut(layers: nn.Sequential, ends: list[int]) -> list[nn.Sequential]:
    bounds = [0, *(end + 1 for end in ends), len(layers)]
    return [layers[start:stop] for start, stop in itertools.pairwise(bounds)]


def _pooled(maps: Tensor) -> Tensor:
    return maps.mean(dim=(2, 3))


def _normalised_and_pooled(norm: nn.Module, maps: Tensor) -> Tensor:
    return _pooled(functional.relu(norm(maps)))


def _rest_and_pooled(rest: nn.Module, maps: Tensor) -> Tensor:
    return _pooled(rest(maps))
