"""Mixed inputs from plain ones: each batch's rows and partners are read once, together, then mixed on the device.

Where plain inputs come from is the reader's business; what was drawn is the policy's or the store's. No targets here,
but the second labels that belong to mixed rows are made here too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.specs import ViewSpec
from kdcache.targets.soft import LabelMix
from kdcache.views.mixing import Mix, mix_batch, recorded_mixing

Rows = NDArray[np.int64]
Asked = tuple[Rows, int]
Plain = Iterator[tuple[Tensor, Rows]]


@dataclass(frozen=True, kw_only=True)
class MixedBatch:
    """What has to be read for one batch.

    Attributes:
        rows: (B,) as asked for.
        view: which view of them.
        mix: their partners and weights.
        needed: (n,) rows and partners, ascending, each once; n is at most 2 B.
        own, partner: (B,) positions in `needed`.
    """

    rows: Rows
    view: int
    mix: Mix
    needed: Rows
    own: Rows
    partner: Rows


def plan_batch(rows: Rows, view: int, mix: Mix) -> MixedBatch:
    """Which rows a mixed batch needs, and where each of them will be."""
    needed, places = np.unique(np.concatenate([rows, mix.partner]), return_inverse=True)
    own, partner = np.split(places, [len(rows)])
    return MixedBatch(rows=rows, view=view, mix=mix, needed=needed, own=own, partner=partner)


def read_mixed(
    read: Callable[[Iterable[Asked]], Plain], asked: Iterable[Asked], mix_of: Callable[[Rows, int], Mix]
) -> Iterator[tuple[Tensor, MixedBatch]]:
    """Mixed inputs of batches of row numbers, in order.

    Args:
        read: gives the plain inputs of batches of row numbers, in order; it may ask for all of them before the first.
        asked: (B,) row numbers and their view, batch by batch.
        mix_of: the mix of some rows in a view.

    Yields:
        (B, C, h, w) float on the device of the plain inputs, and the batch they are.
    """
    waiting: deque[MixedBatch] = deque()

    def needed() -> Iterator[Asked]:
        for rows, view in asked:
            waiting.append(plan_batch(rows, view, mix_of(rows, view)))
            yield waiting[-1].needed, view

    for inputs, _ in read(needed()):
        batch = waiting.popleft()
        own, partner = (
            torch.index_select(inputs, 0, torch.from_numpy(places).to(inputs.device, non_blocking=True))
            for places in (batch.own, batch.partner)
        )
        yield mix_batch(own, partner, batch.mix), batch


def label_mix(mix: Mix, labels: NDArray[np.int64], log_prob: NDArray[np.floating] | None = None) -> LabelMix:
    """The second labels of mixed rows.

    Args:
        mix: n rows.
        labels: (N,) ground truth of all rows; the partner's label is that of the partner row.
        log_prob: (n,) the teacher's log p of the partner's label, where it is known.

    Returns:
        n rows on the CPU.
    """
    return LabelMix(
        partner_label=torch.from_numpy(np.asarray(labels[mix.partner], dtype=np.int64)),
        weight=torch.from_numpy(mix.weight),
        partner_log_prob=None if log_prob is None else torch.from_numpy(log_prob.astype(np.float32)),
    )


def stored_label_mix(
    spec: ViewSpec, packed: NDArray[np.uint8], labels: NDArray[np.int64], log_prob: NDArray[np.floating] | None
) -> LabelMix:
    """`label_mix` of some rows of a store's view.

    Args:
        spec: the store's views, which mix.
        packed: (n, W) their `view_params`.
        labels: (N,) of all rows.
        log_prob: (n,) their `partner_label_log_prob`, or None.

    Raises:
        IncompatibleError, CorruptStoreError: see `views.mixing.recorded_mixing`.
    """
    return label_mix(recorded_mixing(spec, packed, num_rows=len(labels)), labels, log_prob)
