"""Which layers a feature's name means, and that the collector's values are those of a forward pass by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdcache.errors import ConfigError, IncompatibleError
from kdcache.models.features import FeatureCollector, feature_shapes, find_features, stage_layers
from kdcache.models.registry import build_model


def _model(name: str, shape: tuple[int, int, int] = (3, 16, 16)) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, num_classes=5, input_shape=shape).module.eval()


def test_collected_features_are_those_of_a_direct_forward_and_make_the_logits() -> None:
    model = _model("resnet8")
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad(), FeatureCollector(model, find_features(model, ("penultimate", "layer2"), head="fc")) as taken:
        logits = model(images)
        values = taken.take(3)
        second = model.stage2(model.stage1(model.stem(images)))  # type: ignore[operator]
        pooled = model.stage3(second).mean(dim=(2, 3))  # type: ignore[operator]
    assert torch.equal(values["layer2"], second)
    assert torch.equal(values["penultimate"], pooled)
    assert torch.equal(model.fc(values["penultimate"]), logits)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "channels", "sides"),
    [
        ("resnet8", (16, 32, 64), (16, 8, 4)),
        ("wrn-16-1", (16, 32, 64), (16, 8, 4)),
        ("vgg8", (64, 128, 256, 512, 512), (16, 8, 4, 2, 2)),
        ("vgg13", (64, 128, 256, 512, 512), (16, 8, 4, 2, 2)),
        ("shufflenet-v1", (240, 480, 960), (8, 4, 2)),
        ("shufflenet-v2", (116, 232, 464), (8, 4, 2)),
        ("mobilenet-v2", (12, 16, 48, 160), (8, 4, 2, 1)),
    ],
)
def test_stages_end_where_the_image_is_about_to_be_halved(
    name: str, channels: tuple[int, ...], sides: tuple[int, ...]
) -> None:
    model = _model(name)
    names = [f"layer{number + 1}" for number in range(len(stage_layers(model)))]
    shapes = feature_shapes(model, find_features(model, names, head="fc"), torch.randn(1, 3, 16, 16))
    assert [shapes[each] for each in names] == [(c, s, s) for c, s in zip(channels, sides, strict=True)]


def test_a_layer_changed_in_place_by_the_next_one_is_seen_before_the_change() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).eval()
    inputs = torch.randn(6, 4)
    with torch.no_grad(), FeatureCollector(model, find_features(model, ("0",), head="2")) as taken:
        model(inputs)
        before = taken.take(6)["0"]
        assert torch.equal(before, model[0](inputs))
    assert bool((before < 0).any())


def test_dots_may_be_underscores_and_hooks_go_away() -> None:
    model = _model("resnet8")
    points = find_features(model, ("stage1.0.conv1",), head="fc")
    assert points == find_features(model, ("stage1_0_conv1",), head="fc")
    with FeatureCollector(model, points):
        assert len(model.stage1[0].conv1._forward_hooks) == 1  # type: ignore[index, union-attr]
    assert all(not layer._forward_hooks and not layer._forward_pre_hooks for layer in model.modules())


@pytest.mark.parametrize(
    ("names", "head", "message"),
    [
        (("layr3",), "fc", "no layer"),
        (("layer4",), "fc", "no layer"),
        (("layer1", "layer1"), "fc", "twice"),
        (("penultimate",), "", "last linear layer"),
    ],
)
def test_names_without_a_layer_are_refused(names: tuple[str, ...], head: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_features(_model("resnet8"), names, head=head)


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shared(self.shared(x))
        return out


@pytest.mark.parametrize(("layer", "message"), [("shared", "more than once"), ("unused", "was not run")])
def test_layers_run_twice_or_never_are_refused(layer: str, message: str) -> None:
    model = _Twice()
    with pytest.raises(IncompatibleError, match=message):
        feature_shapes(model, find_features(model, (layer,), head=""), torch.randn(2, 3))
