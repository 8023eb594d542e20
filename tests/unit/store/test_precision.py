"""Rounding: monotone, bounded, and what the manifest says it costs is what it costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.store.precision import MANTISSA_BITS, round_half
from kdcache.store.values import rounding_loss

PRECISIONS = sorted(MANTISSA_BITS)
numbers = st.floats(min_value=-60_000, max_value=60_000, width=32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_half_is_rounded_monotonically_within_half_a_step(precision: str) -> None:
    every = np.arange(0x7C00, dtype=np.uint16).view(np.float16)  # all finite halves from 0 up
    rounded = round_half(every.astype(np.float32), precision).astype(np.float64)
    assert (np.diff(rounded) >= 0).all()
    assert np.isfinite(rounded).all()
    normal = slice(0x0400, 0x7B00)
    relative = np.abs(rounded - every.astype(np.float64))[normal] / every.astype(np.float64)[normal]
    assert relative.max() <= 2.0 ** -(MANTISSA_BITS[precision] + 1) + (precision == "exact") * 0


@pytest.mark.parametrize("precision", PRECISIONS)
@given(values=st.lists(numbers, min_size=2, max_size=20))
@settings(max_examples=100)
def test_order_and_sign_survive(precision: str, values: list[float]) -> None:
    ordered = np.sort(np.array(values, dtype=np.float32))
    rounded = round_half(ordered, precision)
    assert (np.diff(rounded.astype(np.float64)) >= 0).all()
    assert (rounded[ordered <= 0] <= 0).all()
    assert not np.signbit(rounded[rounded == 0]).any()
    assert (round_half(rounded, precision) == rounded).all()  # rounding twice changes nothing
    assert (round_half(-ordered, precision) == -rounded).all()


def test_exact_keeps_float16_and_minus_infinity_stays() -> None:
    values = np.array([-np.inf, -1e9, -1.0009765625, -0.0], dtype=np.float32)
    assert round_half(values, "exact").tolist() == [-np.inf, -65504.0, -1.0009765625, 0.0]
    assert round_half(values, "compact").tolist()[0] == -np.inf


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_overflows_becomes_the_largest_number_and_nan_stays(precision: str) -> None:
    values = np.array([[65504.0, 65536.0, 3e38, np.inf, np.nan], [-65504.0, -65519.0, -65520.0, -3e38, -np.inf]])
    values = values.astype(np.float32)
    before = values.copy()
    rounded = round_half(values, precision)
    largest = 65504.0 if precision == "exact" else 65536.0 - 2.0 ** (15 - MANTISSA_BITS[precision])
    assert rounded[0, :4].tolist() == [largest] * 4
    assert np.isnan(rounded[0, 4])
    assert rounded[1].tolist() == [-largest] * 4 + [-np.inf]
    assert np.array_equal(values, before, equal_nan=True)  # rounding works on a copy


def test_rounding_loss_is_zero_without_rounding_and_grows_as_bits_go() -> None:
    rng = np.random.Generator(np.random.Philox(key=3))
    log_prob = np.log(np.sort(rng.dirichlet(np.ones(6) * 0.5, size=500), axis=1)[:, ::-1] + 1e-9)
    given_columns = {"topk_log_prob": log_prob[:, :5], "tail": log_prob[:, 5:]}

    def loss(precision: str) -> float:
        return rounding_loss(given_columns, {n: round_half(v, precision) for n, v in given_columns.items()})

    assert rounding_loss(given_columns, given_columns) == 0
    assert 0 < loss("exact") < loss("default") < loss("compact") < 1e-3
    assert loss("default") < 1e-4
