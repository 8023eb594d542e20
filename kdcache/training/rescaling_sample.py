"""Gradient rescaling of a run, measured on a few steps of every epoch so that it costs next to nothing.

The factor is read off the gradient that the step computes anyway, so every method that reads a store has it, with all
its options. What the numbers mean: docs/methods.md#kd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.targets.rescaling import measured_rescaling, summary
from kdcache.targets.split import log_label_probs
from kdcache.training.batch import Batch

LOOKS_PER_EPOCH = 8
LOOK_EVERY = 32  # steps at least; a look costs 0.5 to 2 ms on a CPU, a step of the smallest student as much


class RescalingSample:
    """Omega_y and the teacher's p_y^T on the rows of every n-th step of one epoch, in this process.

    Args:
        steps: of the epoch; 8 of them are looked at, or every 32nd where there are fewer than 256.
        temperature: T of the run, for the teacher's confidence in the label.
    """

    def __init__(self, steps: int, temperature: float) -> None:
        self._every = max(LOOK_EVERY, -(-steps // LOOKS_PER_EPOCH))
        self._first = min(self._every, steps) // 2
        self._temperature = temperature
        self._omega: list[Tensor] = []
        self._confidence: list[Tensor] = []

    def wants(self, step: int, batch: Batch) -> bool:
        """Whether this step is looked at; its logits then need `retain_grad` before the backward pass."""
        if batch.targets is None or batch.targets.mix is not None:  # omega_y is about one true label
            return False
        return step % self._every == self._first

    def add(self, logits: Tensor, batch: Batch, *, scale: float = 1.0) -> None:
        """Look at a step after its backward pass.

        Args:
            logits: (B, K) float with `grad`, the gradient of the summed loss over `batch.divisor`.
            batch: its rows; those that do not count are left out.
            scale: what the loss was multiplied with before the backward pass (fp16).
        """
        assert logits.grad is not None
        assert batch.targets is not None
        labels = batch.labels if batch.mask is None else torch.where(batch.mask, batch.labels, 0)
        omega = measured_rescaling(logits.detach(), logits.grad * (batch.divisor / scale), labels)
        with torch.no_grad():
            confidence = log_label_probs(batch.targets, self._temperature)[0].exp()
        kept = torch.isfinite(omega) if batch.mask is None else torch.isfinite(omega) & batch.mask
        self._omega.append(omega[kept])
        self._confidence.append(confidence[kept])

    def figures(self) -> dict[str, float | None]:
        """What `targets.rescaling.summary` says of the rows seen; empty where there were none."""
        if not self._omega or not sum(map(len, self._omega)):
            return {}
        return {**summary(torch.cat(self._omega), torch.cat(self._confidence))}
