"""What benchmarks say about their own noise."""

from __future__ import annotations

import statistics

import numpy as np

from benchmarks.machine import median_interval


def test_the_interval_holds_the_median_and_narrows_with_more_rounds() -> None:
    random = np.random.default_rng(1)
    widths = []
    for rounds in (10, 1000):
        values = random.normal(1.0, 0.02, rounds).tolist()
        low, high = median_interval(values)
        assert low <= statistics.median(values) <= high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3
    assert median_interval([2.0] * 5) == (2.0, 2.0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(2)
    inside = 0
    for _ in range(200):
        low, high = median_interval(random.normal(1.0, 0.02, 25).tolist(), resamples=300)
        inside += low <= 1.0 <= high
    assert 0.85 <= inside / 200 <= 1.0
