"""The stages of every built-in CIFAR network, one after the other, are the network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdcache.models.features import FeatureCollector, find_features, stage_layers
from kdcache.models.registry import build_model
from kdcache.models.stages import stages_of

NAMES = ("resnet8", "resnet8x0.5", "wrn-16-1", "vgg8", "shufflenet-v1", "shufflenet-v2", "mobilenet-v2")


@pytest.mark.parametrize("name", NAMES)
def test_the_stages_are_the_network_and_end_where_its_features_are_taken(name: str) -> None:
    torch.manual_seed(0)
    module = build_model(name, num_classes=10, input_shape=(3, 32, 32)).module.eval()
    inputs, names = torch.randn(2, 3, 32, 32), [f"layer{i + 1}" for i in range(len(stage_layers(module)))]
    points = find_features(module, [*names, "penultimate"], head="fc")
    with torch.inference_mode(), FeatureCollector(module, points) as collector:
        logits = module(inputs)
        taken = collector.take(2)
        value, seen = inputs, []
        for stage in stages_of(module):
            value = stage(value)
            seen.append(value.clone())
    assert len(seen) == len(names) + 2
    for name_of, found in zip([*names, "penultimate"], seen, strict=False):
        assert torch.equal(taken[name_of], found), name_of
    assert torch.equal(logits, seen[-1])


def test_other_models_have_no_stages() -> None:
    assert stages_of(nn.Linear(2, 3)) == ()
