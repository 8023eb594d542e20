"""The head is the layer whose output is the model's output, and only that."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdcache.errors import ConfigError
from kdcache.models.head import find_head
from kdcache.models.registry import build_model


@pytest.mark.parametrize("name", ["mlp-8", "cnn-4", "resnet8", "wrn-16-1", "vgg8", "shufflenet-v2"])
def test_logits_are_the_heads_weights_times_features(name: str) -> None:
    module = build_model(name, num_classes=7, input_shape=(3, 32, 32)).module
    head = find_head(module, torch.randn(2, 3, 32, 32))
    assert head is not None
    assert head.name == "fc"
    assert head.weight.shape[0] == 7
    seen: list[Tensor] = []
    module.get_submodule(head.name).register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
    logits = module.eval()(torch.randn(3, 3, 32, 32))
    assert head.bias is not None
    torch.testing.assert_close(seen[-1] @ head.weight.T + head.bias, logits)


@pytest.mark.parametrize(("name", "head_name"), [("resnet18", "fc"), ("mobilenet_v3_small", "classifier.3")])
def test_torchvision_heads_are_found(name: str, head_name: str) -> None:
    module = build_model(f"torchvision:{name}", num_classes=7, input_shape=(3, 32, 32)).module
    head = find_head(module, torch.zeros(2, 3, 32, 32))
    assert head is not None
    assert head.name == head_name


def test_a_one_by_one_convolution_flattened_is_a_head() -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 9, 1, bias=False), nn.Flatten())
    head = find_head(module, torch.randn(2, 4, 5, 5))
    assert head is not None
    assert (head.name, tuple(head.weight.shape), head.bias) == ("1", (9, 4), None)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(4, 5), nn.LogSoftmax(dim=1)),
        nn.Sequential(nn.Linear(4, 5), nn.Hardtanh()),
        nn.Bilinear(2, 2, 3),
        nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 5, 2), nn.Flatten()),
    ],
)
def test_no_head_when_something_computes_after_it(module: nn.Module) -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.inner(x[:, :2], x[:, 2:]) if isinstance(self.inner, nn.Bilinear) else self.inner(x)
            return result

    assert find_head(TwoInputs(), torch.randn(3, 4)) is None


def test_the_named_layer_is_used_and_a_wrong_name_explained() -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.LogSoftmax(dim=1))
    head = find_head(module, torch.randn(2, 4), "0")
    assert head is not None
    assert torch.equal(head.weight, module[0].weight)
    with pytest.raises(ConfigError, match="no such layer"):
        find_head(module, torch.randn(2, 4), "fc")
    with pytest.raises(ConfigError, match="found LogSoftmax"):
        find_head(module, torch.randn(2, 4), "1")


def test_looking_for_the_head_changes_nothing() -> None:
    module = build_model("resnet8", num_classes=7, input_shape=(3, 32, 32)).module.train()
    module.stem.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    find_head(module, torch.randn(2, 3, 32, 32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.training
    assert not module.stem.training
    assert not any(layer._forward_hooks for layer in module.modules())
