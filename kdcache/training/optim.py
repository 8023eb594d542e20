"""Optimizer, learning rate as a pure function of the step, and the exponential average of weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from kdcache.training.config import TrainingConfig


def build_optimizer(module: nn.Module, config: TrainingConfig, *, extra: tuple[nn.Parameter, ...] = ()) -> Optimizer:
    """SGD with Nesterov momentum or AdamW; weight decay on tensors of two or more dimensions only.

    Biases and normalisation scales shrink the function, not its complexity, so they are not decayed.

    Args:
        module: its parameters that require gradients.
        config: optimizer, lr, momentum, weight decay.
        extra: parameters of the loss (a learned temperature), never decayed.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.ndim >= 2]
    others = [parameter for parameter in trained if parameter.ndim < 2] + list(extra)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.lr)
    return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def learning_rate(config: TrainingConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of an optimizer step; a pure function, so that resume needs no schedule state.

    Args:
        config: lr, schedule, warm-up, epochs.
        step: global step from 0.
        steps_per_epoch: optimizer steps in one epoch.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    total = config.epochs * steps_per_epoch
    if config.schedule == "step":
        passed = sum(step >= share * total for share in config.milestones)
        return config.lr * math.pow(config.step_factor, passed)
    if config.schedule == "cosine":
        done = min(1.0, (step - warmup) / max(total - warmup, 1))
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Use one learning rate in every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class WeightAverage:
    """Exponential moving average of a module's parameters; buffers (running statistics) are copied.

    Args:
        module: the module being trained.
        decay: weight of the past, in [0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(module).requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Fold in the module after optimizer step `step` (from 0).

        The decay starts low and rises to its value, as 1 - 1/(step + 1) would: else the average is mostly the random
        initial weights for the first 1 / (1 - decay) steps.
        """
        decay = min(self.decay, 1 - 1 / (step + 1))
        for average, parameter in zip(self.module.parameters(), module.parameters(), strict=True):
            average.lerp_(parameter, 1 - decay)
        for kept, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            kept.copy_(buffer)

    def state(self) -> dict[str, Tensor]:
        """The averaged state dict."""
        return self.module.state_dict()
