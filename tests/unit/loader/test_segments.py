"""Reading plans: every row once in streams, and a context that depends on the row alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.errors import ConfigError
from kdcache.loader.segments import context_lanes, stream_steps

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=6)


def offsets_of(lengths: list[int]) -> np.ndarray:
    """(S + 1,) boundaries."""
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)


@given(LENGTHS, st.integers(1, 12), st.data())
def test_a_rows_lane_begins_where_row_and_sequence_say_whatever_is_asked_with_it(
    lengths: list[int], context: int, data: st.DataObject
) -> None:
    offsets = offsets_of(lengths)
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, int(offsets[-1]) - 1), min_size=1))), dtype=np.int64)
    lanes = context_lanes(rows, offsets, context)
    begins = {}
    for row in rows.tolist():
        (alone,) = context_lanes(np.array([row]), offsets, context)
        holding = [lane for lane in lanes if lane.start == alone.start]
        assert len(holding) == 1
        assert holding[0].stop > row
        begins[row] = alone.start
        first = int(offsets[np.searchsorted(offsets, row, side="right") - 1])
        assert first <= alone.start <= row
        assert row - alone.start >= min(context, row - first)  # at least the context, or all there is
        assert row - alone.start < 2 * context
    assert [lane.start for lane in lanes] == sorted(set(begins.values()))


@given(LENGTHS, st.integers(1, 7), st.integers(1, 20), st.booleans(), st.integers(0, 3))
def test_an_epoch_reads_every_row_once_and_carries_only_where_it_stopped(
    lengths: list[int], lanes: int, segment: int, carry: bool, epoch: int
) -> None:
    offsets = offsets_of(lengths)
    steps = stream_steps(offsets, lanes=lanes, segment=segment, carry=carry, seed=1, epoch=epoch)
    seen = [row for step in steps for lane in step if lane for row in range(lane.start, lane.stop)]
    assert sorted(seen) == list(range(int(offsets[-1])))
    boundaries = set(offsets.tolist())
    for number in range(lanes):
        before = None
        for step in steps:
            lane = step[number]
            if lane is None:
                before = None
                continue
            assert 0 < lane.stop - lane.start <= segment
            assert not any(lane.start < boundary < lane.stop for boundary in boundaries)
            assert carry or not lane.carry
            if lane.carry:
                assert before is not None
                assert before.stop == lane.start
                assert lane.start not in boundaries
            before = lane


def test_one_long_sequence_is_cut_into_one_stream_for_each_lane() -> None:
    steps = stream_steps(np.array([0, 100]), lanes=4, segment=10, carry=True, seed=0, epoch=0)
    assert [len(step) for step in steps] == [4, 4, 4]
    assert sorted(lane.start for lane in steps[0] if lane) == [0, 25, 50, 75]
    assert [lane.carry for lane in steps[0] if lane] == [False] * 4
    assert all(lane.carry for step in steps[1:] for lane in step if lane)


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    offsets = offsets_of([9] * 40)
    plans = [
        stream_steps(offsets, lanes=3, segment=5, carry=False, seed=seed, epoch=epoch)
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    assert plans[0] != plans[3]


def test_rows_out_of_order_and_impossible_counts_are_refused() -> None:
    offsets = np.array([0, 10])
    with pytest.raises(ConfigError, match="ascending"):
        context_lanes(np.array([3, 2]), offsets, 4)
    with pytest.raises(ConfigError, match="context: expected at least 1"):
        context_lanes(np.array([3]), offsets, 0)
    with pytest.raises(ConfigError, match="at least 1 lane"):
        stream_steps(offsets, lanes=0, segment=4, carry=True, seed=0, epoch=0)
