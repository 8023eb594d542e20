"""From the loss of a step to new weights: gradients, their sum over processes, scaling, clipping, optimizer, average.

Knows nothing of data, epochs or files. Gradients are added up by hand (no wrapper around the model), so that every step
equals the step of one process on the whole batch, whatever the shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.devices import gradient_scaler
from kdcache.training.checkpoint import pack_optimizer, unpack_optimizer, with_prefix, without_prefix
from kdcache.training.config import TrainingConfig
from kdcache.training.optim import WeightAverage, build_optimizer, set_learning_rate
from kdcache.training.processes import Processes


class Update:
    """What changes the weights of a model: optimizer, loss scale (fp16 only) and average of weights (EMA only).

    Args:
        model: on its device; its parameters are changed in place.
        extra: parameters of the loss (a learned temperature), trained with the model and never decayed or averaged.
        config: optimizer, clipping, ema, amp.
        processes: those that share each step.
    """

    def __init__(self, model: nn.Module, extra: nn.Module | None, config: TrainingConfig, processes: Processes) -> None:
        learned = tuple(extra.parameters()) if extra is not None else ()
        self.parameters = [p for p in (*model.parameters(), *learned) if p.requires_grad]
        self.average = WeightAverage(model, config.ema) if config.ema else None
        self._model = model
        self._clip = config.clip_grad
        self._processes = processes
        self._optimizer = build_optimizer(model, config, extra=learned)
        self._scaler = gradient_scaler(config.amp, processes.device)

    @property
    def loss_scale(self) -> float | None:
        """What the loss is multiplied with before the backward pass; None without fp16."""
        return None if self._scaler is None else float(self._scaler.get_scale())

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a part of the step's loss (), scaled where arithmetic is fp16."""
        torch.autograd.backward(loss if self._scaler is None else self._scaler.scale(loss))

    def apply(self, rate: float, step: int) -> None:
        """Take optimizer step `step` (from 0) with the gradients added up so far, and forget them.

        With fp16 a step whose gradients overflowed is left out and the scale halved; every process does the same.
        """
        set_learning_rate(self._optimizer, rate)
        self._sum_over_processes()
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)  # clipping means the gradient itself, not the scaled one
        if self._clip:
            nn.utils.clip_grad_norm_(self.parameters, self._clip)
        if self._scaler is None:
            self._optimizer.step()
        else:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self._model, step)

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """State as flat tensors and JSON numbers, for a checkpoint."""
        tensors, scalars = pack_optimizer(self._optimizer)
        if self.average is not None:
            tensors |= with_prefix("average", self.average.state())
        numbers: dict[str, Any] = {"optimizer": scalars}
        if self._scaler is not None:
            numbers["scaler"] = self._scaler.state_dict()
        return tensors, numbers

    def unpack(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Put packed state back."""
        unpack_optimizer(self._optimizer, tensors, numbers["optimizer"])
        if self.average is not None:
            self.average.module.load_state_dict(without_prefix("average", tensors))
        if self._scaler is not None:
            self._scaler.load_state_dict(numbers["scaler"])

    def _sum_over_processes(self) -> None:
        """Sum gradients in one message; a parameter without a gradient here counts as zero."""
        if self._processes.world_size == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        flat = self._processes.sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
