"""`SoftTargets`: a batch of teacher opinions as tensors. Holds and moves data; the maths is in the other modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# float16 ends at 65,504: a log-probability below minus this, or a variance above it, would become infinite at rest.
LARGEST_STORED = 60_000.0
TARGET_COLUMNS = ("topk_index", "topk_log_prob", "tail", "label_log_prob")
"""The columns of a store that a row's targets are made of, beside its label."""


@dataclass(frozen=True, kw_only=True)
class LabelMix:
    """The second label of rows that show two examples, mixed in pixels (mixup) or by a pasted box (cutmix).

    Attributes:
        partner_label: (B,) int64, the partner row's ground truth.
        weight: (B,) float32 lambda in [0, 1], the share of the row's own label; 1 where nothing was mixed.
        partner_log_prob: (B,) float32, the teacher's log p of the partner's label, in nats; None where it is not kept.
    """

    partner_label: Tensor
    weight: Tensor
    partner_log_prob: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> LabelMix:
        """The mix with every field changed alike."""
        kept = self.partner_log_prob
        return LabelMix(
            partner_label=change(self.partner_label),
            weight=change(self.weight),
            partner_log_prob=None if kept is None else change(kept),
        )


@dataclass(frozen=True, kw_only=True)
class SoftTargets:
    """What a store knows about B rows of one view.

    The head S is the top k together with the label; `tail` describes the K - |S| other classes.

    Attributes:
        index: (B, k) int64, classes, most probable first.
        log_prob: (B, k) float32, log p at T=1 in nats, descending.
        tail: (B, 3) or (B, 4) float32: log mass at T=1, mean and variance of log p over the tail, and optionally
            A(1/2), the log of the tail's sum of p^(1/2) (its log mass at T=2). An empty tail is (-inf, 0, 0, -inf).
        label: (B,) int64, ground truth.
        label_log_prob: (B,) float32, the teacher's log p of the label, in nats.
        num_classes: K.
        sample_index: (B, m) int64 or None, distinct classes drawn from p at T=1 (rskd); unused places repeat class 0.
        sample_count: (B, m) float or int or None, how often each was drawn; 0 in unused places.
        mix: the second label of rows that mix two examples, whose opinion this is; None where every row is one example.
    """

    index: Tensor
    log_prob: Tensor
    tail: Tensor
    label: Tensor
    label_log_prob: Tensor
    num_classes: int
    sample_index: Tensor | None = None
    sample_count: Tensor | None = None
    mix: LabelMix | None = None
    splits: dict[tuple[float, bool], Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What `split.split_teacher` found for these rows, by (T, label named): losses ask for it several times a step."""

    @classmethod
    def from_columns(cls, columns: Mapping[str, NDArray[Any]], label: NDArray[Any], *, num_classes: int) -> SoftTargets:
        """The targets in the decoded columns of a store's rows.

        Args:
            columns: `topk_index` (B, k) integer, `topk_log_prob` (B, k), `tail` (B, 3) or (B, 4) and `label_log_prob`
                (B,) of any float type; others are passed over.
            label: (B,) integer, ground truth.
            num_classes: K.
        """
        return cls(
            index=torch.from_numpy(columns["topk_index"].astype(np.int64)),
            log_prob=torch.from_numpy(columns["topk_log_prob"].astype(np.float32)),
            tail=torch.from_numpy(columns["tail"].astype(np.float32)),
            label=torch.from_numpy(label.astype(np.int64)),
            label_log_prob=torch.from_numpy(columns["label_log_prob"].astype(np.float32)),
            num_classes=num_classes,
        )

    def __len__(self) -> int:
        return self.index.shape[0]

    @property
    def topk(self) -> int:
        """k, the number of classes kept per row."""
        return self.index.shape[1]

    @property
    def device(self) -> torch.device:
        """The device of every field."""
        return self.index.device

    @cached_property
    def label_in_topk(self) -> Tensor:
        """(B,) bool: whether the label is among the top k."""
        with torch.inference_mode(False):  # it is kept, and a later backward pass may need it
            return (self.index == self.label[:, None]).any(dim=1)

    @property
    def tail_count(self) -> Tensor:
        """(B,) int64: n = K - |S|, the classes outside top k and label."""
        return self.label_in_topk.long() + (self.num_classes - self.topk - 1)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> SoftTargets:
        """The same targets on another device."""
        return self._each(lambda field: field.to(device, non_blocking=non_blocking))

    def select(self, rows: Tensor) -> SoftTargets:
        """The targets of some rows of this batch, by position (int64 or bool mask)."""
        return self._each(lambda field: field[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> SoftTargets:
        return SoftTargets(
            index=change(self.index),
            log_prob=change(self.log_prob),
            tail=change(self.tail),
            label=change(self.label),
            label_log_prob=change(self.label_log_prob),
            num_classes=self.num_classes,
            sample_index=None if self.sample_index is None else change(self.sample_index),
            sample_count=None if self.sample_count is None else change(self.sample_count),
            mix=None if self.mix is None else self.mix.each(change),
        )
