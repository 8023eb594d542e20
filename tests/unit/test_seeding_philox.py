"""Philox4x32-10 against the known answers of Random123, and what is drawn from its words."""

from __future__ import annotations

import numpy as np
import pytest

from kdcache.seeding import below, philox4x32, stream_key, unit_interval

# Random123's kat_vectors, "philox4x32 10": counter words, key words (lowest first), result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    low, high = _words(key)
    found = philox4x32(np.array(_words(counter), dtype=np.uint32)[:, None], high << 32 | low)
    assert found[:, 0].tolist() == _words(expected)


def test_a_counter_does_not_depend_on_its_neighbours() -> None:
    counters = np.random.default_rng(0).integers(0, 2**32, (4, 1000), dtype=np.uint32)
    together = philox4x32(counters, 12345)
    alone = np.concatenate([philox4x32(counters[:, i : i + 1], 12345) for i in range(0, 1000, 97)], axis=1)
    np.testing.assert_array_equal(together[:, ::97], alone)


def test_neighbouring_seeds_have_unrelated_keys() -> None:
    keys = {stream_key("views", seed) & 0xFFFFFFFFFFFFFFFF for seed in range(20_000)}
    assert len(keys) == 20_000
    bits = [bin(stream_key("views", seed) ^ stream_key("views", seed + 1)).count("1") for seed in range(500)]
    assert 60 < np.mean(bits) < 68  # half of 128 bits differ


def test_numbers_from_words_stay_in_their_range_and_are_even() -> None:
    words = philox4x32(np.stack([np.arange(50_000, dtype=np.uint32)] * 4), 7)[0]
    assert 0 <= unit_interval(words).min() <= unit_interval(words).max() < 1
    assert abs(unit_interval(words).mean() - 0.5) < 0.005
    counts = np.bincount(below(words, 7), minlength=7)
    assert len(counts) == 7
    assert abs(counts / len(words) - 1 / 7).max() < 0.006
    extremes = np.array([0, 0xFFFFFFFF], dtype=np.uint32)
    assert below(extremes, 9).tolist() == [0, 8]
    assert below(extremes, np.array([1, 2**32 - 1])).tolist() == [0, 2**32 - 2]
