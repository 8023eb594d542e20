"""Part of a split by row range, written `train[:10000]` or `train[10000:]`, as tensorflow-datasets users know it.

The part is a data set of its own: its rows count from 0 and its digests cover its own rows. Only whole numbers, no
steps, no negative ends: the text names one set of rows whatever the length of the split.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np
from numpy.typing import NDArray

from kdcache.datasets.sequences import TokenSource
from kdcache.datasets.source import ArraySource, DataSource
from kdcache.errors import ConfigError

_RANGE = re.compile(r"(?P<split>[^\[\]]+)\[(?P<start>\d*):(?P<stop>\d*)\]")


def parse_split(text: str) -> tuple[str, int, int | None]:
    """The split's own name and the rows [start, stop) of it; a plain name means all rows.

    Raises:
        ConfigError: brackets that are not `[start:stop]`.
    """
    if "[" not in text and "]" not in text:
        return text, 0, None
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"split {text!r}: expected NAME or NAME[START:STOP] with whole numbers", hint="for example train[:10000]"
        )
    return match["split"], int(match["start"] or 0), int(match["stop"]) if match["stop"] else None


def row_range(source: DataSource, start: int, stop: int | None) -> DataSource:
    """Rows [start, stop) of a data set, as a data set named `split[start:stop]`.

    Raises:
        ConfigError: the range is empty or ends after the last row.
    """
    end = len(source) if stop is None else stop
    if not 0 <= start < end <= len(source):
        raise ConfigError(
            f"data set {source.name!r} split {source.split!r}: rows [{start}:{end}] asked for, expected a part of "
            f"[0:{len(source)}]"
        )
    split = f"{source.split}[{start}:{end}]"
    if isinstance(source, ArraySource):
        return ArraySource(
            source.examples[start:end],
            source.labels[start:end],
            name=source.name,
            split=split,
            num_classes=source.num_classes,
            class_names=source.class_names,
        )
    if isinstance(source, TokenSource):
        return source.part(start, end, split=split)
    return RangeSource(source, start, end, split=split)


class RangeSource:
    """Rows [start, stop) of a data set that is not an array; reads through to it."""

    def __init__(self, source: DataSource, start: int, stop: int, *, split: str) -> None:
        self._source = source
        self._start = start
        self.labels: NDArray[np.int64] = source.labels[start:stop]
        self.name = source.name
        self.split = split
        self.num_classes = source.num_classes
        self.class_names = source.class_names
        self.identity = source.identity

    def __len__(self) -> int:
        return len(self.labels)

    def raw(self, row: int) -> bytes:
        """The raw bytes of the part's row."""
        return self._source.raw(self._start + row)

    def example(self, row: int) -> NDArray[np.generic]:
        """The decoded example of the part's row."""
        return self._source.example(self._start + row)

    def example_from_raw(self, row: int, raw: bytes) -> NDArray[np.generic]:
        """The decoded example of bytes that were read already, where the data set behind can do that."""
        decode = getattr(self._source, "example_from_raw", None)
        return self.example(row) if decode is None else decode(self._start + row, raw)

    def fingerprint(self) -> str:
        """Changes whenever the content may have; empty when the data set behind cannot tell."""
        behind = getattr(self._source, "fingerprint", None)
        if not callable(behind):
            return ""
        return hashlib.sha256(f"{behind()} {self._start} {len(self)}".encode()).hexdigest()
