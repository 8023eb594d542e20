"""Scales and ticks: round, rising, inside the axis; places between 0 and 1."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.html.axes import Axis, clipped, log_ticks, percent, round_ticks, short


@given(st.floats(min_value=-1e3, max_value=1e3), st.floats(min_value=1e-4, max_value=1e6))
def test_round_ticks_are_even_rising_and_inside(low: float, span: float) -> None:
    high = low + span
    ticks = round_ticks(low, high)
    assert all(low - 1e-6 * span <= tick <= high + 1e-6 * span for tick in ticks)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert 2 <= len(ticks) <= 7
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-3)


def test_round_ticks_of_a_point_and_of_nothing() -> None:
    assert round_ticks(3.0, 3.0) == [3.0]
    assert round_ticks(math.nan, 1.0) == []


@pytest.mark.parametrize(
    ("low", "high", "count"), [(1, 10, 4), (1, 100, 7), (1, 1000, 10), (1, 1e6, 7), (1, 21_841, 5)]
)
def test_log_ticks_are_powers_with_two_and_five_where_there_is_room(low: float, high: float, count: int) -> None:
    ticks = log_ticks(low, high)
    assert ticks == sorted(ticks)
    assert len(ticks) == count
    assert ticks[0] == low


@given(st.floats(min_value=0.5, max_value=1e5), st.booleans())
def test_place_runs_from_zero_to_one_and_stays_there(high: float, log: bool) -> None:
    axis = Axis(title="x", low=0.1, high=0.1 + high, log=log)
    places = [axis.place(value) for value in (-5, 0.1, 0.1 + high / 3, 0.1 + high, 1e9)]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0.0, 1.0)


def test_whole_axes_mark_whole_numbers_and_their_beginning() -> None:
    assert Axis(title="epoch", low=1, high=12, whole=True).marks() == [1, 5, 10]
    assert Axis(title="epoch", low=1, high=3, whole=True).marks() == [1, 2, 3]
    assert Axis(title="k", low=1, high=100, log=True, whole=True).marks()[0] == 1


def test_numbers_as_people_write_them() -> None:
    assert [percent(value) for value in (0, 0.5, 0.0123, 1, 0.0005)] == ["0%", "50%", "1.2%", "100%", "0.05%"]
    assert [short(value) for value in (0.0, 0.25, 12_000, 1_500_000)] == ["0", "0.25", "12k", "1.5M"]


def test_long_names_are_clipped() -> None:
    assert clipped("pickup_truck", 200) == "pickup_truck"
    assert clipped("x" * 100, 66) == "x" * 9 + "…"
