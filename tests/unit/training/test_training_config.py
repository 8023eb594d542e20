"""Settings: refused when out of range, and filled in from given, then card, then default."""

from __future__ import annotations

import pytest

from kdcache.errors import ConfigError
from kdcache.training.config import TrainingConfig, TrainingOptions


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"accumulate": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"weight_decay": -1e-4},
        {"momentum": 1.0},
        {"ema": 1.0},
        {"clip_grad": -1.0},
        {"optimizer": "adam"},
        {"schedule": "linear"},
        {"amp": "fp8"},
        {"milestones": (0.5, 1.5)},
        {"seed": -1},
        {"early_stop": -1},
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainingConfig(**wrong)  # type: ignore[arg-type]


def test_given_beats_the_card_which_beats_the_default() -> None:
    card = {"epochs": 7, "lr": 0.02, "student": "resnet8", "milestones": [0.5]}
    config = TrainingOptions(lr=0.5, optimizer="").training(card)
    assert (config.epochs, config.lr, config.optimizer, config.milestones) == (7, 0.5, "sgd", (0.5,))


def test_a_wrong_value_of_an_option_is_refused_when_resolved() -> None:
    with pytest.raises(ConfigError, match="optimizer"):
        TrainingOptions(optimizer="adm").training({})
