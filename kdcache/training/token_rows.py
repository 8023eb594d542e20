"""Training and evaluation on token rows: streams of segments in order, and figures after full context.

The counterpart of `TrainingFeed` and `evaluation_on` for data sets of sequences. A model with a state reads each
sequence in order and its state goes on from step to step; every epoch begins without one, so a run needs nothing but
the checkpoint of the epoch before to continue with the same bits. Rows that do not count never reach the model's head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcache.datasets.sequences import SequenceSource, counted_rows
from kdcache.errors import ConfigError
from kdcache.loader.segments import Lane, stream_steps
from kdcache.loader.target_store import TargetStore
from kdcache.loader.tokens import TokenReader, segment_of
from kdcache.metrics import Evaluation, evaluate
from kdcache.models.language import carries_state
from kdcache.training.batch import Batch
from kdcache.training.config import TrainingConfig
from kdcache.training.processes import Processes

EVALUATION_LOGITS = 2**25  # numbers in one batch of logits, 128 MB of float32
EVALUATION_ROWS = 4096


class TokenFeed:
    """Batches of an epoch over token rows; the calls of `TrainingFeed`.

    Args:
        source: the token rows.
        labels: (N,) int64 on the device of training, what follows each row.
        batch_size: rows per step over all processes: `batch_size // segment` parallel lanes.
        segment: rows a lane reads in one step, the length of truncated back-propagation.
        carry: whether the model's state goes on from segment to segment; else every segment stands alone.
        seed: decides the order of pieces.
        rank, world_size: this process takes every world_size-th lane.
        store: soft targets, or None for training on labels alone.
        topk: classes per row; None takes all that are stored.

    Raises:
        ConfigError: a batch smaller than a segment, or lanes that do not divide among the processes.
    """

    def __init__(
        self,
        source: SequenceSource,
        labels: Tensor,
        *,
        batch_size: int,
        segment: int,
        carry: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        store: TargetStore | None = None,
        topk: int | None = None,
    ) -> None:
        lanes = batch_size // segment
        if lanes < 1 or lanes % world_size:
            raise ConfigError(
                f"batch size {batch_size} rows of segments of {segment}: {lanes} parallel lanes; expected at least 1, "
                f"and a multiple of the {world_size} processes",
                hint=f"use --batch-size {max(1, -(-lanes // world_size)) * world_size * segment}, or another --segment",
            )
        self._source = source
        self._labels = labels
        self._lanes, self._segment, self._carry = lanes, segment, carry
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self._store = store
        self._topk = topk
        self.num_rows = len(counted_rows(source))
        self.steps = len(self._plan(0))  # every epoch deals the same pieces; some orders need a step more or less

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, a pure function of seed and epoch."""
        plan = self._plan(epoch)
        counts = [sum(self._counted(lane) for lane in step) for step in plan]
        own = [step[self._rank :: self._world_size] for step in plan]
        has_empty = any(not sum(self._counted(lane) for lane in step) for step in own)
        for step, total in zip(own, counts, strict=True):
            batch = self._batch(step, total)
            # A step without rows gives no loss; the mask says so to methods that look at a batch as a whole.
            mask = torch.ones(len(batch.rows), dtype=torch.bool, device=batch.labels.device) if has_empty else None
            yield replace(batch, mask=mask)

    def _plan(self, epoch: int) -> list[list[Lane | None]]:
        steps = stream_steps(
            self._source.sequence_offsets,
            lanes=self._lanes,
            segment=self._segment,
            carry=self._carry,
            seed=self._seed,
            epoch=epoch,
        )
        if self._carry:  # a state has to pass through rows that do not count
            return steps
        kept = [[lane if self._counted(lane) else None for lane in step] for step in steps]
        return [step for step in kept if any(lane is not None for lane in step)]

    def _counted(self, lane: Lane | None) -> int:
        if lane is None:
            return 0
        mask = self._source.mask
        return lane.stop - lane.start if mask is None else int(mask[lane.start : lane.stop].sum())

    def _batch(self, lanes: Sequence[Lane | None], global_rows: int) -> Batch:
        segment, rows = segment_of(self._source, lanes, carry=self._carry, device=self._labels.device)
        index = torch.from_numpy(rows).to(self._labels.device, non_blocking=True)
        targets = None if self._store is None else self._store.targets(index, 0, self._topk)
        return Batch(
            inputs=segment,
            labels=torch.index_select(self._labels, 0, index),
            rows=rows,
            targets=targets,
            global_rows=global_rows,
        )


def token_feed(
    source: SequenceSource,
    model: nn.Module,
    config: TrainingConfig,
    processes: Processes,
    *,
    store: TargetStore | None = None,
    topk: int | None = None,
) -> TokenFeed:
    """The feed that a model and a configuration ask for; a model with a state gets streams that go on.

    Raises:
        ConfigError: settings that token rows do not have, or as `TokenFeed`.
    """
    if config.accumulate > 1:
        raise ConfigError(
            f"accumulate {config.accumulate}: a step of token rows is not cut into pieces",
            hint="use a smaller --batch-size; it is already shared among parallel lanes",
        )
    return TokenFeed(
        source,
        torch.tensor(source.labels).to(processes.device),
        batch_size=config.batch_size,
        segment=config.segment,
        carry=carries_state(model),
        seed=config.seed,
        rank=processes.rank,
        world_size=processes.world_size,
        store=store,
        topk=topk,
    )


def token_evaluation_on(
    source: SequenceSource,
    processes: Processes,
    *,
    context: int,
    teacher: TargetStore | None = None,
) -> Callable[[nn.Module], Evaluation]:
    """A function that evaluates a language model on all rows that count, each after at least `context` tokens.

    Args:
        source: the test tokens.
        processes: this process among all; batches are shared out.
        context: tokens read before each row, at least.
        teacher: a store over the same rows; its most probable class gives the agreement.

    Returns:
        module -> figures, with the perplexity exp(NLL).
    """
    reader = TokenReader(source, context=context, device=processes.device)
    labels = torch.tensor(source.labels).to(processes.device)
    size = max(1, min(EVALUATION_ROWS, EVALUATION_LOGITS // source.num_classes))
    batches = _runs(counted_rows(source), size)[processes.rank :: processes.world_size]

    def rows_of() -> Iterator[tuple[object, Tensor, Tensor | None]]:
        for segment, rows in reader.batches(batches):
            index = torch.from_numpy(rows).to(processes.device)
            opinion = teacher.targets(index).index[:, 0] if teacher is not None else None
            yield segment, labels[index], opinion

    def figures(module: nn.Module) -> Evaluation:
        found = evaluate(module, rows_of(), device=processes.device, sum_over_processes=processes.sum)
        return replace(found, perplexity=math.exp(min(found.nll, 700.0)))

    return figures


def _runs(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
