"""Features on the way to a model's logits: which layers a name means, and a collector of their values.

"penultimate" is what the head reads. "layer1", "layer2", ... (or "stage1", ...) are the ends of a built-in CIFAR
network's stages, the spots of the distillation papers; of other models the layer of that name. Any other name is a
layer's, as in `module.named_modules()`; underscores may stand for its dots.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdcache.errors import ConfigError, IncompatibleError
from kdcache.models.cifar_mobile import CifarMobileNetV2, CifarShuffleNetV1, CifarShuffleNetV2
from kdcache.models.cifar_resnet import CifarResNet, WideResNet
from kdcache.models.cifar_vgg import VGG_STAGES, CifarVgg
from kdcache.models.language import Segment
from kdcache.nearest import did_you_mean

PENULTIMATE = "penultimate"
_STAGE = re.compile(r"(?:layer|stage)(\d)")


class FeaturePoint(NamedTuple):
    """One place in a model.

    Attributes:
        name: what it was asked for by, dots as underscores: letters, digits and underscores.
        layer: as in `module.named_modules()`.
        side: which of the layer's values: what it reads or what it gives.
    """

    name: str
    layer: str
    side: Literal["input", "output"]


def stage_layers(module: nn.Module) -> tuple[str, ...]:
    """The last layer of each stage of a built-in CIFAR network, first stage first; empty for other models.

    A stage of a ResNet or wide ResNet ends before the next one halves the image (a wide ResNet's third before its last
    batch norm); a VGG has five, each ending with its last ReLU; a ShuffleNet three. MobileNetV2's four end after its
    inverted-residual stages 2, 3, 5 and 7, where the public code of Tian et al. 2020 takes its features (recalled).
    """
    if isinstance(module, CifarResNet):
        return "stage1", "stage2", "stage3"
    if isinstance(module, WideResNet):
        per_stage = len(module.blocks) // 3
        return tuple(f"blocks.{per_stage * (stage + 1) - 1}" for stage in range(3))
    if isinstance(module, CifarVgg):
        return _vgg_stages(module)
    if isinstance(module, CifarShuffleNetV1 | CifarShuffleNetV2):
        return "features.4", "features.12", "features.16"  # after a first convolution: 4, 8 and 4 units
    if isinstance(module, CifarMobileNetV2):
        blocks = [stage[2] for stage in module.STAGES]
        return tuple(f"features.{sum(blocks[:stages])}" for stages in (2, 3, 5, 7))
    return ()


def _vgg_stages(module: CifarVgg) -> tuple[str, ...]:
    relus = [index for index, layer in enumerate(module.features) if isinstance(layer, nn.ReLU)]
    lengths = next(
        [len(stage) for stage in stages] for stages in VGG_STAGES.values() if sum(map(len, stages)) == len(relus)
    )
    return tuple(f"features.{relus[sum(lengths[: stage + 1]) - 1]}" for stage in range(len(lengths)))


def find_features(module: nn.Module, names: Sequence[str], *, head: str) -> tuple[FeaturePoint, ...]:
    """The places that names mean in a model.

    Args:
        module: the model.
        names: each once; see the module's docstring.
        head: name of the last linear layer, "" when the model has none.

    Raises:
        ConfigError: a name is no layer, is ambiguous, comes twice, or asks for the input of a head that is not there.
    """
    layers = [label for label, _ in module.named_modules() if label]
    stages = stage_layers(module)
    points: list[FeaturePoint] = []
    for name in names:
        plain = name.replace(".", "_")
        if any(point.name == plain for point in points):
            raise ConfigError(f"features: {name!r} is named twice; expected each feature once")
        stage = _STAGE.fullmatch(name)
        if name == PENULTIMATE:
            if not head:
                raise ConfigError(
                    "features: 'penultimate' is what the last linear layer reads, and none makes this model's logits",
                    hint="name it with --head LAYER, or name another layer",
                )
            points.append(FeaturePoint(plain, head, "input"))
        elif name in layers:
            points.append(FeaturePoint(plain, name, "output"))
        elif stage is not None and 1 <= int(stage[1]) <= len(stages):
            points.append(FeaturePoint(plain, stages[int(stage[1]) - 1], "output"))
        else:
            points.append(FeaturePoint(plain, _layer_written_plainly(name, layers, stages), "output"))
    return tuple(points)


def _layer_written_plainly(name: str, layers: Sequence[str], stages: Sequence[str]) -> str:
    same = [label for label in layers if label.replace(".", "_") == name]
    if len(same) == 1:
        return same[0]
    if same:
        raise ConfigError(f"features: {name!r} means {' and '.join(same)}; expected the name of one layer")
    known = [PENULTIMATE, *(f"layer{number + 1}" for number in range(len(stages))), *layers]
    raise ConfigError(f"features: {name!r} is no layer of the model", hint=did_you_mean(name, known))


class FeatureCollector:
    """Copies what passes some places of a model during forward passes; a context manager that listens while open.

    Values are copied at once: a layer behind may change them in place.

    Args:
        module: the model.
        points: where to listen.
        dtype: of the copies; a number too large for float16 becomes infinite, which the store's writer refuses.
    """

    def __init__(
        self, module: nn.Module, points: Sequence[FeaturePoint], *, dtype: torch.dtype = torch.float32
    ) -> None:
        self._layers = dict(module.named_modules())
        self._points = tuple(points)
        self._dtype = dtype
        self._values: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> FeatureCollector:
        for point in self._points:
            layer = self._layers[point.layer]
            if point.side == "input":
                self._handles.append(layer.register_forward_pre_hook(self._reads(point)))
            else:
                self._handles.append(layer.register_forward_hook(self._gives(point)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def take(self, rows: int) -> dict[str, Tensor]:
        """The values of the last forward pass by name, each (rows, ...) on the model's device; forgotten here.

        Raises:
            IncompatibleError: a place was not passed, or its first axis is not that of the rows.
        """
        values, self._values = self._values, {}
        for point in self._points:
            found = values.get(point.name)
            if found is None:
                raise IncompatibleError(
                    f"feature {point.name!r}: layer {point.layer!r} was not run; expected it on the way to the logits"
                )
            if not 2 <= found.ndim <= 4 or len(found) != rows:
                raise IncompatibleError(
                    f"feature {point.name!r}: layer {point.layer!r} has an {point.side} of shape {tuple(found.shape)}; "
                    f"expected {rows} rows of 1 to 3 axes",
                    hint="name another layer; of a language model only 'penultimate' has a row per token",
                )
        return values

    def _reads(self, point: FeaturePoint) -> Any:
        def hook(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._keep(point, inputs[0] if inputs else None)

        return hook

    def _gives(self, point: FeaturePoint) -> Any:
        def hook(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            self._keep(point, output)

        return hook

    def _keep(self, point: FeaturePoint, value: object) -> None:
        if not isinstance(value, Tensor):
            raise IncompatibleError(
                f"feature {point.name!r}: layer {point.layer!r} has an {point.side} of type {type(value).__name__}; "
                "expected a tensor"
            )
        if point.name in self._values:
            raise IncompatibleError(
                f"feature {point.name!r}: layer {point.layer!r} runs more than once in a forward pass; expected once"
            )
        if point.name == PENULTIMATE:
            value = value.flatten(1)  # a head that is a 1x1 convolution reads (B, D, 1, 1)
        self._values[point.name] = value.detach().to(self._dtype, copy=True)


def feature_shapes(
    module: nn.Module, points: Sequence[FeaturePoint], example: Tensor | Segment
) -> Mapping[str, tuple[int, ...]]:
    """Shape of one row's values by name, from one forward pass in eval mode; modes are left as they were.

    Args:
        module: the model.
        points: places in it.
        example: a small batch of model inputs, on the model's device.

    Raises:
        IncompatibleError: as `FeatureCollector.take`.
    """
    modes = {layer: layer.training for layer in module.modules()}
    try:
        module.eval()
        with torch.inference_mode(), FeatureCollector(module, points) as collector:
            rows = len(module(example))
    finally:
        for layer, training in modes.items():
            layer.training = training
    return {name: tuple(value.shape[1:]) for name, value in collector.take(rows).items()}
