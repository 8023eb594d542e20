"""Where the teacher's side of the routes comes from: a store's columns, or, for what a store cannot hold, a live model.

Both give the clean values at the spots and run on from values the routes have mixed; a store can do that only where
nothing but pooling and the head is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcache.errors import ConfigError, IncompatibleError
from kdcache.loader.target_store import TargetStore
from pipelines.spot_adaptive.network import INPUT, LAST_MAP, LOGITS, PENULTIMATE, SplitNetwork

NAMES: Mapping[int, str] = {1: "layer1", 2: "layer2", 3: "layer3", PENULTIMATE: "penultimate"}
CHECKED_ROWS = 64
POOLING_ERROR = 0.01  # of the largest feature; float16 maps pool to within 0.001 of a float32 penultimate


class Teacher(Protocol):
    """What a training step needs of the teacher."""

    @property
    def shapes(self) -> Mapping[int, tuple[int, ...]]:
        """Shape of one row's value at every spot it gives."""
        ...

    def clean(self, inputs: Tensor, rows: Tensor, view: int) -> dict[int, Tensor]:
        """The teacher's own values (B, ...) float32 at its spots, without gradients.

        Args:
            inputs: (B, ...) as the student reads them; a store does not look at them.
            rows: (B,) int64 row numbers.
            view: which view of the rows it is.
        """
        ...

    def run(self, value: Tensor, start: int, stop: int) -> Tensor:
        """The teacher's value at spot `stop` given mixed values at spot `start`, with gradients to them."""
        ...


class StoredTeacher:
    """The teacher as a store holds it: feature columns and its last layer. Runs on from the last map and later only.

    Args:
        store: dumped with --features; float32 features equal a live teacher's bit for bit.
        spots: whose values are wanted; the penultimate features are always given.
        runs_on: whether mixed values will be run on from the last of them.

    Raises:
        IncompatibleError: the store lacks a column or the head, or shall run on from a last map that the penultimate
            features are not the mean of.
    """

    def __init__(self, store: TargetStore, spots: Sequence[int], *, runs_on: bool = True) -> None:
        weight = store.class_weight
        if weight is None:
            raise IncompatibleError(
                f"{store.location}: holds no class_weight, the teacher's last layer",
                hint="dump a teacher with a linear head; --head LAYER names it",
            )
        bias = store.class_bias
        self._store = store
        self.head = (weight, torch.zeros(len(weight), device=weight.device) if bias is None else bias)
        self._spots = sorted({*spots, PENULTIMATE})
        some = torch.arange(min(CHECKED_ROWS, store.num_rows))
        values = self.clean(some, some, 0)
        self.shapes = {spot: tuple(value.shape[1:]) for spot, value in values.items()}
        if LAST_MAP in values and runs_on:
            self._check_pooling(values[LAST_MAP], values[PENULTIMATE])

    def clean(self, inputs: Tensor, rows: Tensor, view: int) -> dict[int, Tensor]:
        """The stored columns of these rows."""
        return {spot: self._store.features(NAMES[spot], rows, view) for spot in self._spots}

    def run(self, value: Tensor, start: int, stop: int) -> Tensor:
        """Pooling and head; nothing of the teacher is left to run.

        Raises:
            ConfigError: layers of the teacher lie between the spots.
        """
        if start < LAST_MAP:
            raise ConfigError(
                f"from spot {start} to {stop} the teacher has layers to run, which no store holds",
                hint="use sakd-prefix, or --live-teacher",
            )
        if start == LAST_MAP:
            value = value.mean(dim=(2, 3))
        return functional.linear(value, *self.head) if stop == LOGITS else value

    def _check_pooling(self, maps: Tensor, features: Tensor) -> None:
        gap = float((maps.mean(dim=(2, 3)) - features).abs().max()) if maps.shape[1] == features.shape[1] else None
        if gap is None or gap > POOLING_ERROR * float(features.abs().max()):
            raise IncompatibleError(
                f"{self._store.location}: the penultimate features are not the mean of layer3's map "
                f"({tuple(maps.shape[1:])} and {tuple(features.shape[1:])}, largest difference {gap}): layers of the "
                "teacher lie between them",
                hint="use a teacher that pools its last map (a CIFAR ResNet), or rkd, pkt, cc, crd",
            )


class LiveTeacher:
    """The teacher as a model that runs in every step: outside the cache promise, and not for use without being asked.

    Args:
        network: the teacher's, with its weights; put into eval mode without gradients for its parameters.
        example: a small input batch.
        spots: whose values are wanted; the penultimate features are always given.
    """

    def __init__(self, network: SplitNetwork, example: Tensor, spots: Sequence[int]) -> None:
        network.module.eval().requires_grad_(requires_grad=False)
        self._network = network
        self._spots = sorted({*spots, PENULTIMATE})
        self.shapes = network.shapes(example, self._spots)

    @property
    def module(self) -> nn.Module:
        """The model."""
        return self._network.module

    def clean(self, inputs: Tensor, rows: Tensor, view: int) -> dict[int, Tensor]:
        """A forward pass over the student's inputs."""
        with torch.no_grad():
            return self._network.visit(inputs, INPUT, self._spots)

    def run(self, value: Tensor, start: int, stop: int) -> Tensor:
        """The layers between the spots."""
        return self._network.run(value, start, stop)
