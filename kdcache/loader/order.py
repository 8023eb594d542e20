"""The order in which an epoch visits rows: pure functions, so that resume and several processes need no state."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ConfigError
from kdcache.seeding import rng_for


def epoch_order(
    num_rows: int, *, seed: int, epoch: int, world_size: int = 1, rank: int = 0, shuffle: bool = True
) -> NDArray[np.int64]:
    """Rows that one process visits in one epoch, in order; a pure function of its arguments.

    Process `rank` takes positions rank, rank + world_size, ... of one permutation: together the processes see every
    row once, and step by step the same rows as a single process whose batch is the sum of theirs.

    Args:
        num_rows: N.
        seed: the run's seed.
        epoch: epoch number from 0.
        world_size: number of processes.
        rank: this process, 0 <= rank < world_size.
        shuffle: False keeps row order.

    Returns:
        (ceil((N - rank) / world_size),) int64.

    Raises:
        ConfigError: a count below 1, or a rank outside the world.
    """
    if num_rows < 1 or world_size < 1 or not 0 <= rank < world_size:
        raise ConfigError(f"epoch order: {num_rows} rows for rank {rank} of {world_size}; expected rank < world size")
    if not shuffle:
        return np.arange(rank, num_rows, world_size, dtype=np.int64)
    order = rng_for("epoch-order", seed, epoch).permutation(num_rows).astype(np.int64)
    return order[rank::world_size]


def batch_bounds(num_rows: int, batch_size: int, *, world_size: int = 1) -> list[tuple[int, int]]:
    """Where the global batches of one epoch start and stop, over the order of all processes together.

    Every row is in exactly one batch. A remainder of less than half a batch is joined with the batch before and the
    two are cut in halves: a last batch of one row would break batch normalisation and get the weight of a full one.
    The cuts do not depend on the number of processes, with one exception: where every process has one row per step
    and a remainder has no row for each, it joins the batch before.

    Args:
        num_rows: N.
        batch_size: global batch, in rows; a multiple of world_size.
        world_size: number of processes; each has at least one row of every batch.

    Raises:
        ConfigError: the batch does not divide among the processes, or there are fewer rows than processes.
    """
    if batch_size < 1 or batch_size % world_size:
        raise ConfigError(
            f"batch size {batch_size} does not divide among {world_size} processes; expected a multiple of {world_size}"
        )
    if num_rows < world_size:
        raise ConfigError(f"{num_rows} rows for {world_size} processes; expected at least one row each")
    starts = list(range(0, num_rows, batch_size))
    if len(starts) > 1 and num_rows - starts[-1] < batch_size / 2:
        starts[-1] = starts[-2] + -(-(num_rows - starts[-2]) // 2)
    if num_rows - starts[-1] < world_size:  # only with one row each per step: some process would have none
        starts.pop()
    return list(zip(starts, [*starts[1:], num_rows], strict=True))


def epoch_batches(
    num_rows: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    world_size: int = 1,
    rank: int = 0,
    shuffle: bool = True,
) -> list[NDArray[np.int64]]:
    """The row batches of one process in one epoch: `epoch_order` cut at `batch_bounds`.

    Args:
        num_rows: N.
        batch_size: global batch in rows, over all processes.
        seed, epoch, world_size, rank, shuffle: as for `epoch_order`.

    Returns:
        One int64 array of rows per step; the number of steps is the same in every process.

    Raises:
        ConfigError: as `epoch_order` and `batch_bounds`.
    """
    order = epoch_order(num_rows, seed=seed, epoch=epoch, world_size=world_size, rank=rank, shuffle=shuffle)
    bounds = batch_bounds(num_rows, batch_size, world_size=world_size)
    # positions p of the common order with p % world_size == rank: the first at or after `start` is the share's cut
    share = [-(-(start - rank) // world_size) for start, _ in bounds[1:]]
    return np.split(order, share)
