"""Learning rate as a function of the step, decay of matrices only, averages that follow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdcache.training.config import TrainingConfig
from kdcache.training.optim import WeightAverage, build_optimizer, learning_rate


def test_cosine_falls_from_lr_towards_zero_after_a_linear_rise() -> None:
    config = TrainingConfig(epochs=10, lr=1.0, warmup_epochs=2)
    rates = [learning_rate(config, step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[30] == pytest.approx(0.5)  # half of what follows the warm-up
    assert 0 < rates[-1] < 0.01


def test_step_drops_at_the_papers_epochs() -> None:
    config = TrainingConfig(epochs=240, lr=0.05, schedule="step")
    rates = [learning_rate(config, epoch * 3, 3) for epoch in range(240)]
    drops = [epoch for epoch in range(1, 240) if rates[epoch] < rates[epoch - 1]]
    assert drops == [150, 180, 210]
    assert rates[-1] == pytest.approx(0.05e-3)


def test_constant_stays() -> None:
    config = TrainingConfig(epochs=3, lr=0.3, schedule="constant")
    assert {learning_rate(config, step, 4) for step in range(12)} == {0.3}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_only_weights_of_two_or_more_dimensions_decay(optimizer: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    temperature = nn.Parameter(torch.zeros(1, 1))
    config = TrainingConfig(optimizer=optimizer, weight_decay=0.1)  # type: ignore[arg-type]
    groups = build_optimizer(model, config, extra=(temperature,)).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    assert decayed == {id(p) for p in model.parameters() if p.ndim >= 2}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters())) + 1


def test_average_of_constant_weights_is_those_weights_and_buffers_are_copied() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(2.0)
        model[1].running_mean.fill_(5.0)
    for step in range(200):
        average.update(model, step)
    for parameter in average.module.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, 2.0))
    assert torch.equal(average.module[1].running_mean, model[1].running_mean)  # type: ignore[index]


def test_first_update_forgets_the_initial_weights() -> None:
    model = nn.Linear(2, 2)
    average = WeightAverage(model, 0.999)
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update(model, 0)
    assert torch.equal(average.module.weight, model.weight)
