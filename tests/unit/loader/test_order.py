"""The order of an epoch: every row once, the same for every number of processes, nothing but its arguments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.errors import ConfigError
from kdcache.loader import batch_bounds, epoch_batches, epoch_order

worlds = st.integers(1, 4)


@given(num_rows=st.integers(1, 500), seed=st.integers(0, 9), epoch=st.integers(0, 9), world=worlds)
def test_ranks_together_see_every_row_once(num_rows: int, seed: int, epoch: int, world: int) -> None:
    shares = [epoch_order(num_rows, seed=seed, epoch=epoch, world_size=world, rank=rank) for rank in range(world)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(num_rows))


@given(num_rows=st.integers(8, 500), local=st.integers(1, 40), world=worlds, epoch=st.integers(0, 3))
def test_step_by_step_the_processes_see_the_batch_of_one_process(
    num_rows: int, local: int, world: int, epoch: int
) -> None:
    batch = local * world
    bounds = batch_bounds(num_rows, batch, world_size=world)
    if local > 1:
        assert bounds == batch_bounds(num_rows, batch)
    order = epoch_order(num_rows, seed=3, epoch=epoch)
    parts = [epoch_batches(num_rows, batch, seed=3, epoch=epoch, world_size=world, rank=rank) for rank in range(world)]
    assert {len(part) for part in parts} == {len(bounds)}
    for step, (start, stop) in enumerate(bounds):
        seen = np.concatenate([part[step] for part in parts])
        assert all(len(part[step]) > 0 for part in parts)
        assert sorted(seen.tolist()) == sorted(order[start:stop].tolist())


@given(num_rows=st.integers(1, 2000), local=st.integers(1, 300), world=worlds)
def test_bounds_cover_every_row_once_without_a_tiny_batch(num_rows: int, local: int, world: int) -> None:
    batch = local * world
    if num_rows < world:
        return
    bounds = batch_bounds(num_rows, batch, world_size=world)
    assert [start for start, _ in bounds] == [0, *[stop for _, stop in bounds[:-1]]]
    assert bounds[-1][1] == num_rows
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) < batch + world
    if len(sizes) > 1:
        assert min(sizes) >= max(world, batch // 2 - world)


def test_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    first = epoch_order(1000, seed=0, epoch=0)
    np.random.seed(7)  # the global generator must not matter
    assert np.array_equal(first, epoch_order(1000, seed=0, epoch=0))
    assert not np.array_equal(first, epoch_order(1000, seed=0, epoch=1))
    assert not np.array_equal(first, epoch_order(1000, seed=1, epoch=0))
    assert np.array_equal(epoch_order(10, seed=5, epoch=2, shuffle=False), np.arange(10))


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 3"):
        batch_bounds(100, 32, world_size=3)
    with pytest.raises(ConfigError):
        epoch_order(10, seed=0, epoch=0, world_size=2, rank=2)
