"""How a model is trained: one frozen config for students and teachers, validated before anything runs.

`TrainingOptions` is what a person asked for (None = not said); `TrainingConfig` is what runs. No torch here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kdcache.errors import ConfigError
from kdcache.nearest import did_you_mean

# What a data card may set for training; other keys of its defaults (student, teacher) are read elsewhere.
_CHOICES = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("cosine", "step", "constant"),
    "amp": ("none", "bf16", "fp16"),
}
_LATER = {
    "early_stop": 0,
    "segment": 35,
    "context": 128,
}  # settings added after the first runs, and their value when off


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that decides the weights of a run, besides data, model and loss.

    Attributes:
        epochs: passes over the data.
        batch_size: rows per optimizer step, over all processes and accumulated pieces together.
        optimizer: "sgd" (Nesterov momentum) or "adamw".
        lr: peak learning rate.
        weight_decay: on weights of two or more dimensions; biases and normalisation have none.
        schedule: "cosine" to 0, "step" (times step_factor at each milestone) or "constant".
        milestones: shares of the run at which "step" drops; 5/8, 3/4, 7/8 is 150, 180, 210 of 240 epochs.
        warmup_epochs: epochs of linear rise from 0 to lr, fractions allowed.
        clip_grad: largest global gradient norm; 0 is off.
        accumulate: pieces a batch is cut into, for memory; the order of rows does not change.
        ema: decay of an exponential average of the weights, which is then what is evaluated and saved; 0 is off.
        amp: "none" (float32), "bf16" or "fp16" autocast of the forward pass; the loss is always float32, and with fp16
            it is scaled so that small gradients survive.
        channels_last: memory layout of images and convolutions.
        compile: use torch.compile.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        early_stop: epochs without a better test top-1 after which the run ends; 0 is off. The stop is chosen on the
            rows it is measured on, so last and best are then both optimistic.
        segment: of token rows: rows a lane reads in one step; `batch_size // segment` lanes are read side by side.
        context: of token rows: tokens read before each row in evaluations, at least.
        seed: initial weights, order, augmentation and dropout.
    """

    epochs: int = 30
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)
    step_factor: float = 0.1
    warmup_epochs: float = 0.0
    clip_grad: float = 0.0
    accumulate: int = 1
    ema: float = 0.0
    amp: Literal["none", "bf16", "fp16"] = "none"
    channels_last: bool = False
    compile: bool = False
    eval_every: int = 1
    early_stop: int = 0
    segment: int = 35
    context: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "eval_every", "segment", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, found {getattr(self, name)}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{name}: {getattr(self, name)!r} is unknown", hint=did_you_mean(str(getattr(self, name)), known)
                )
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"lr: expected a positive number, found {self.lr}")
        for name in ("weight_decay", "clip_grad", "warmup_epochs", "early_stop"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"{name}: expected 0 or more, found {getattr(self, name)}")
        for name in ("momentum", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected a number in [0, 1), found {getattr(self, name)}")
        if any(not 0 < share < 1 for share in self.milestones):
            raise ConfigError(f"milestones: expected shares of the run between 0 and 1, found {self.milestones}")
        if self.seed < 0:
            raise ConfigError(f"seed: expected 0 or more, found {self.seed}")

    def decides(self) -> dict[str, Any]:
        """What decides the weights, as config.json keeps it.

        Settings that came later are left out while they are off: a run started before them can still be resumed.
        """
        content = dataclasses.asdict(self)
        return {name: value for name, value in content.items() if name not in _LATER or value != _LATER[name]}


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The training settings a person may give; None means the data card's default, then `TrainingConfig`'s.

    `DistillConfig` and `TeacherConfig` extend this, so that one flat config per command holds every option.

    Attributes:
        seed: initial weights, order, augmentation and dropout.
        out: run folder; None chooses one under kdcache-runs/.
        resume: continue the run in `out` where its last checkpoint stands.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        workers: processes that decode files; 0 reads in this process.
        augment: random augmentation of training inputs, a view policy's name; "none" is off.
        keep_every: keep the weights of every n-th epoch in the run folder, each directly a `--weights`; 0 is off.
    """

    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    lr: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    schedule: str | None = None
    warmup_epochs: float | None = None
    clip_grad: float | None = None
    accumulate: int | None = None
    ema: float | None = None
    amp: str | None = None
    channels_last: bool | None = None
    compile: bool | None = None
    eval_every: int | None = None
    early_stop: int | None = None
    segment: int | None = None
    context: int | None = None
    seed: int = 0
    out: str = ""
    resume: bool = False
    device: str = "auto"
    workers: int = 0
    augment: str | None = None
    keep_every: int = 0

    def training(self, defaults: Mapping[str, Any]) -> TrainingConfig:
        """The settings that run: given here, else in `defaults` (a data card's), else `TrainingConfig`'s own.

        Raises:
            ConfigError: a value outside its range.
        """
        values: dict[str, Any] = {}
        for field in dataclasses.fields(TrainingConfig):
            given = getattr(self, field.name, None)
            value = defaults.get(field.name) if given in (None, "") else given
            if value is not None:
                values[field.name] = tuple(value) if field.name == "milestones" else value
        return TrainingConfig(**values)
