"""A method with its settings, ready to be called on a step's logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kdcache.targets.method import Method, MethodContext
from kdcache.training.batch import Batch


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a run minimises.

    Attributes:
        method: a row of the method table.
        temperature, alpha: None means the method's own.
        options: the method's options.
        context: what `Method.prepare` returned.
    """

    method: Method
    temperature: float | None = None
    alpha: float | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    context: MethodContext = field(default_factory=MethodContext)

    @property
    def module(self) -> nn.Module | None:
        """Parameters that are trained with the model (a learned temperature), or None."""
        return self.context.module

    @property
    def target_temperature(self) -> float:
        """T at which the teacher's confidence is reported; 1 for methods without a fixed one."""
        return self.method.checked_temperature(self.temperature, None)

    def __call__(self, logits: Tensor, batch: Batch, epoch: float, *, second_logits: Tensor | None = None) -> Tensor:
        """The loss of a batch at a position in training (in epochs): (B,) nats, or () for a batch-level method.

        `second_logits` (B, K) are those of `batch.second`, where there is one.
        Rows that do not count (`batch.mask`) give 0 and no gradient, whatever their logits, labels and targets hold.
        """
        mask = batch.mask
        if mask is not None and not self.method.per_row and not bool(mask.any()):
            return torch.where(mask[:, None], logits, 0.0).sum()  # 0 with a gradient of 0: no row to compare
        return self.method(
            logits,
            batch.targets,
            batch.labels,
            temperature=self.temperature,
            alpha=self.alpha,
            options=self.options,
            context=self.context.at_epoch(epoch),
            mask=mask,
            second=None if batch.second is None or second_logits is None else (second_logits, batch.second[1]),
        )
