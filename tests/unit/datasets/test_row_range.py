"""Parts of a split: the rows named, counted from 0, whatever kind of source is behind."""

from __future__ import annotations

import numpy as np
import pytest

from kdcache.datasets.identity import content_digest, row_digests
from kdcache.datasets.row_range import RangeSource, parse_split, row_range
from kdcache.datasets.source import ArraySource
from kdcache.errors import ConfigError


def numbers(rows: int = 10) -> ArraySource:
    examples = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    return ArraySource(examples, np.arange(rows) % 4, name="numbers", split="train", num_classes=4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train", ("train", 0, None)),
        ("train[:5]", ("train", 0, 5)),
        ("train[5:]", ("train", 5, None)),
        ("a-b[2:7]", ("a-b", 2, 7)),
    ],
)
def test_split_text_is_a_name_and_a_range(text: str, expected: tuple[str, int, int | None]) -> None:
    assert parse_split(text) == expected


@pytest.mark.parametrize("text", ["train[", "train[1]", "train[-3:]", "train[a:b]", "[1:2]", "train[1:2][0:1]"])
def test_other_brackets_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="START:STOP"):
        parse_split(text)


@pytest.mark.parametrize("bounds", [(3, 3), (5, 2), (0, 11), (10, None)])
def test_an_empty_or_overlong_range_is_refused(bounds: tuple[int, int | None]) -> None:
    with pytest.raises(ConfigError, match=r"expected a part of \[0:10\]"):
        row_range(numbers(), *bounds)


def test_array_and_other_sources_give_the_same_part() -> None:
    whole = numbers()
    part, through = row_range(whole, 2, 7), RangeSource(whole, 2, 7, split="train[2:7]")
    assert part.split == through.split == "train[2:7]"
    assert len(part) == len(through) == 5
    assert part.labels.tolist() == through.labels.tolist() == whole.labels[2:7].tolist()
    assert [part.raw(i) for i in range(5)] == [through.raw(i) for i in range(5)] == [whole.raw(i) for i in range(2, 7)]
    assert row_digests(part, range(5)).tolist() == row_digests(whole, range(2, 7)).tolist()
    assert content_digest(part) != content_digest(whole)
    assert through.fingerprint() == ""
