"""What a training step gets, and where batches come from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.loader.inputs import InputReader
from kdcache.loader.order import batch_bounds, epoch_batches, epoch_order
from kdcache.loader.target_store import TargetStore
from kdcache.models.language import Segment
from kdcache.targets.soft import SoftTargets


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of one process in one step.

    Attributes:
        inputs: (B, ...) for the model, or a segment of token rows whose kept rows are the B rows.
        labels: (B,) int64.
        rows: (B,) row numbers.
        targets: the teacher's opinion, or None.
        global_rows: rows of this step over all processes.
        mask: (B,) bool, the rows that count; None: all of them. Others (padding, ignored labels) give no loss, no
            gradient and no figures.
        global_counted: rows of this step over all processes that count; None: all of them. The loss is the mean over
            these.
        second: inputs (B, ...) and targets of the same rows in another view, for two-view methods.
    """

    inputs: Tensor | Segment
    labels: Tensor
    rows: NDArray[np.int64]
    targets: SoftTargets | None
    global_rows: int
    mask: Tensor | None = None
    global_counted: int | None = None
    second: tuple[Tensor, SoftTargets] | None = None

    @property
    def counted(self) -> Tensor | int:
        """How many of these B rows count; a tensor () on the device where there is a mask, so that nothing waits."""
        return len(self.rows) if self.mask is None else self.mask.sum()

    @property
    def divisor(self) -> int:
        """What the step's summed loss is divided by: the rows that count over all processes, at least 1."""
        return max(1, self.global_rows if self.global_counted is None else self.global_counted)

    def pieces(self, count: int) -> Iterator[Batch]:
        """The batch cut into at most `count` pieces of nearly equal size, in order; a segment stays whole."""
        if count == 1 or isinstance(self.inputs, Segment):
            yield self
            return
        total = len(self.rows)
        edges = sorted({total * piece // count for piece in range(count + 1)})
        for start, stop in itertools.pairwise(edges):
            part, chosen = slice(start, stop), torch.arange(start, stop, device=self.labels.device)
            targets, second = self.targets, self.second
            if targets is not None:
                targets = targets.select(chosen)
            if second is not None:
                second = (second[0][part], second[1].select(chosen))
            yield replace(
                self,
                inputs=self.inputs[part],
                labels=self.labels[part],
                rows=self.rows[part],
                targets=targets,
                mask=None if self.mask is None else self.mask[part],
                second=second,
            )


class Feed(Protocol):
    """Where the loop gets its batches."""

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        ...

    @property
    def num_rows(self) -> int:
        """Rows of an epoch over all processes."""
        ...

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, a pure function of its number."""
        ...


class TrainingFeed:
    """Batches of an epoch: inputs by `InputReader`, targets gathered from the store, in `epoch_batches` order.

    Args:
        inputs: reader of the training split.
        labels: (N,) int64 on the device of training.
        batch_size: rows per step over all processes.
        seed: decides the order.
        rank, world_size: this process among all.
        store: soft targets, or None for training on labels alone.
        topk: classes per row; None takes all that are stored.
        view_of_epoch: which view of inputs (and of the store) an epoch shows.
        second_of_epoch: which view comes beside it, for two-view methods; None: none.
        digests: (N,) digests of the raw examples, compared as rows pass in the first epoch this process trains.
        mask: (N,) bool, the rows that count; None: all. A row that does not count is read and has no label.
    """

    def __init__(
        self,
        inputs: InputReader,
        labels: Tensor,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        store: TargetStore | None = None,
        topk: int | None = None,
        view_of_epoch: Callable[[int], int] = lambda epoch: 0,
        second_of_epoch: Callable[[int], int] | None = None,
        digests: NDArray[np.uint16] | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> None:
        self._inputs = inputs
        self._labels = labels
        self._batch_size = batch_size
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self._store = store
        self._topk = topk
        self._view_of_epoch = view_of_epoch
        self._second_of_epoch = second_of_epoch
        self._digests = digests
        self._mask = mask
        self._device_mask = None if mask is None else torch.from_numpy(mask).to(labels.device)
        self._bounds = batch_bounds(len(labels), batch_size, world_size=world_size)

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        return len(self._bounds)

    @property
    def num_rows(self) -> int:
        """N, over all processes."""
        return len(self._labels)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, a pure function of seed and epoch."""
        order = epoch_batches(
            self.num_rows,
            self._batch_size,
            seed=self._seed,
            epoch=epoch,
            world_size=self._world_size,
            rank=self._rank,
        )
        view = self._view_of_epoch(epoch)
        second = None if self._second_of_epoch is None else self._second_of_epoch(epoch)
        read, counts = self._read(order, view, second), self._global_counts(epoch)
        for (start, stop), counted, (shown, *beside) in zip(self._bounds, counts, read, strict=True):
            batch = self._batch(*shown, view, stop - start, counted)
            for inputs, rows in beside:
                assert second is not None
                batch = replace(batch, second=(inputs, self._targets(self._index(rows), second)))
            if self._store is not None and self._store.num_views > 1 and second is None:  # two views are in use then
                self._store.prefetch(self._view_of_epoch(epoch + 1))  # one call counts, the others are free
            yield batch
        self._digests = None  # every row of this process's share has been compared

    def _read(
        self, order: list[NDArray[np.int64]], view: int, second: int | None
    ) -> Iterator[tuple[tuple[Tensor, NDArray[np.int64]], ...]]:
        """Inputs and rows of every step, once, or in its two views."""
        views = [view] if second is None else [view, second]
        asked = [rows for rows in order for _ in views]
        read = self._inputs.batches(asked, view=views * len(order), digests=self._digests)
        return zip(*[read] * len(views), strict=True)

    def _global_counts(self, epoch: int) -> list[int] | list[None]:
        """Rows that count in each step over all processes; every process knows the whole order."""
        if self._mask is None:
            return [None] * self.steps
        order = self._mask[epoch_order(self.num_rows, seed=self._seed, epoch=epoch)]
        return [int(order[start:stop].sum()) for start, stop in self._bounds]

    def _batch(
        self, inputs: Tensor, rows: NDArray[np.int64], view: int, global_rows: int, global_counted: int | None
    ) -> Batch:
        index = self._index(rows)
        return Batch(
            inputs=inputs,
            labels=torch.index_select(self._labels, 0, index),
            rows=rows,
            targets=None if self._store is None else self._targets(index, view),
            global_rows=global_rows,
            mask=None if self._device_mask is None else torch.index_select(self._device_mask, 0, index),
            global_counted=global_counted,
        )

    def _index(self, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(rows).to(self._labels.device, non_blocking=True)

    def _targets(self, index: Tensor, view: int) -> SoftTargets:
        assert self._store is not None
        return self._store.targets(index, view if self._store.num_views > 1 else 0, self._topk)
