"""Finds the layer that makes a model's logits, for methods that need its weights (KD-sim). Changes nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdcache.errors import ConfigError
from kdcache.models.language import Segment
from kdcache.nearest import did_you_mean


class Head(NamedTuple):
    """A linear last layer: logits = weight @ features + bias.

    Attributes:
        name: the layer's name in the model.
        weight: (K, D) float32 on the CPU.
        bias: (K,) float32 on the CPU, or None.
    """

    name: str
    weight: Tensor
    bias: Tensor | None


def find_head(module: nn.Module, example: Tensor | Segment, name: str = "") -> Head | None:
    """The linear layer (or 1x1 convolution) whose output *is* the model's output.

    One forward pass in eval mode tells; the training mode of every submodule is left as it was. A layer followed by
    anything that computes (a scale, a log-softmax) is not a head: its weights alone do not make the logits.

    Args:
        module: the model.
        example: a small input batch that the model accepts, on the model's device.
        name: the layer to use instead, as in `module.named_modules()`.

    Returns:
        The head, or None when no linear layer makes the output.

    Raises:
        ConfigError: `name` is not a layer of the model, or has no (K, D) weights.
    """
    candidates = {label: layer for label, layer in module.named_modules() if _is_linear(layer)}
    if name:
        layer = dict(module.named_modules()).get(name)
        if layer is None:
            raise ConfigError(f"head {name!r}: no such layer in the model", hint=did_you_mean(name, candidates))
        if not _is_linear(layer):
            raise ConfigError(
                f"head {name!r}: expected a Linear layer or 1x1 convolution, found {type(layer).__name__}",
                hint=did_you_mean(name, candidates),
            )
        return _head(name, layer)
    found = _layer_of_output(module, candidates, example)
    return _head(found, candidates[found]) if found is not None else None


def _is_linear(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.groups == 1
    return isinstance(layer, nn.Linear)


def _layer_of_output(module: nn.Module, candidates: dict[str, nn.Module], example: Tensor | Segment) -> str | None:
    # The outputs are kept alive until the comparison: a freed buffer may be handed out again at the same address.
    outputs: dict[str, Tensor] = {}
    modes = {layer: layer.training for layer in module.modules()}

    def remember(label: str) -> Any:
        def hook(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs[label] = output

        return hook

    handles = [layer.register_forward_hook(remember(label)) for label, layer in candidates.items()]
    try:
        module.eval()
        with torch.no_grad():
            result = module(example)
    finally:
        for handle in handles:
            handle.remove()
        for layer, training in modes.items():
            layer.training = training
    if not isinstance(result, Tensor):
        return None
    same = [label for label, output in outputs.items() if _same_numbers(output, result)]
    return same[-1] if same else None


def _same_numbers(output: Tensor, result: Tensor) -> bool:
    """Whether `result` is `output`, or a view of all of it (a 1x1 convolution is flattened after)."""
    return output.numel() == result.numel() and output.data_ptr() == result.data_ptr()


def _head(name: str, layer: nn.Module) -> Head:
    weight = layer.weight
    bias = layer.bias
    assert isinstance(weight, Tensor)
    matrix = weight.detach().float().cpu().reshape(weight.shape[0], -1).clone()
    return Head(name, matrix, bias.detach().float().cpu().clone() if isinstance(bias, Tensor) else None)
