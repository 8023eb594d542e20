"""Token rows as segments for language models: the counterpart of `InputReader`, whose calls it answers.

A teacher, a test figure and a replay read through `TokenReader.batches`: any rows, each after its own context.
Students read streams: `segment_of` turns one step of `segments.stream_steps` into tensors. No targets here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.datasets.sequences import SequenceSource
from kdcache.errors import ConfigError
from kdcache.loader.segments import Lane, context_lanes
from kdcache.models.language import Segment
from kdcache.specs import PreprocessingSpec

DEFAULT_CONTEXT = 128
_CODE = "context:"


def with_context(spec: PreprocessingSpec, context: int) -> PreprocessingSpec:
    """A teacher's preprocessing that also says how many tokens it reads before a row: it changes targets."""
    return replace(spec, code=" ".join(part for part in (spec.code, f"{_CODE}{context}") if part))


def context_of(spec: PreprocessingSpec) -> int:
    """The context that `with_context` put down; 0 for a teacher of rows that stand alone."""
    last = spec.code.rsplit(" ", 1)[-1]
    number = last.removeprefix(_CODE)
    return int(number) if last.startswith(_CODE) and number.isdecimal() else 0


class TokenReader:
    """Reads batches of token rows, each row after at least `context` tokens of its sequence.

    Args:
        source: the token rows.
        context: C; a row sees C to 2C tokens before it, or its whole sequence so far.
        device: where the segments come out.

    Raises:
        ConfigError: a context below 1.
    """

    in_memory = True

    def __init__(self, source: SequenceSource, *, context: int, device: torch.device | str = "cpu") -> None:
        if context < 1:
            raise ConfigError(f"context: expected at least 1 token, found {context}")
        self._source = source
        self._context = context
        self._device = torch.device(device)

    def batches(
        self,
        batches: Iterable[NDArray[np.int64]],
        *,
        view: int = 0,
        digests: NDArray[np.uint16] | None = None,
    ) -> Iterator[tuple[Segment, NDArray[np.int64]]]:
        """Segments of batches of row numbers, in the order given.

        Args:
            batches: ascending row numbers, (B,) int64 each; runs of rows are cheapest.
            view: always 0: tokens have no augmented views.
            digests: not used; the tokens as a whole are compared with a store's (`datasets.sequences`).

        Yields:
            (segment, rows): the segment's kept rows are `rows`, in order.
        """
        if view != 0:
            raise ConfigError(f"token rows have one view; view {view} was asked for")
        for rows in batches:
            lanes = context_lanes(rows, self._source.sequence_offsets, self._context)
            segment = _segment(self._source, lanes)
            segment.keep.zero_()
            ends = np.searchsorted(rows, [lane.stop for lane in lanes])
            for number, (lane, asked) in enumerate(zip(lanes, np.split(rows, ends[:-1]), strict=True)):
                segment.keep[number, torch.from_numpy(asked - lane.start)] = True
            yield segment.to(self._device, non_blocking=True), rows

    def view_columns(self, rows: NDArray[np.int64], view: int) -> Mapping[str, NDArray[np.generic]]:
        """The store's `mask` column of these rows, where the data has a mask."""
        return {} if self._source.mask is None else {"mask": self._source.mask[rows].astype(np.uint8)}


def segment_of(
    source: SequenceSource, lanes: Sequence[Lane | None], *, carry: bool, device: torch.device | str = "cpu"
) -> tuple[Segment, NDArray[np.int64]]:
    """One training step's segment and its rows: those of every lane that count, lane after lane.

    Args:
        source: the token rows.
        lanes: what every lane reads; None for one that has run out (it stays, as padding, so that states line up).
        carry: whether the segment belongs to streams that go on.
        device: where the segment comes out.
    """
    segment = _segment(source, lanes)
    if source.mask is not None:
        for number, lane in enumerate(lanes):
            if lane is not None:
                counted = torch.from_numpy(np.array(source.mask[lane.start : lane.stop]))
                segment.keep[number, : lane.stop - lane.start] &= counted
    rows = np.concatenate(
        [np.arange(lane.start, lane.stop, dtype=np.int64) for lane in lanes if lane is not None] or [_NO_ROWS]
    )
    if source.mask is not None:
        rows = rows[source.mask[rows]]
    if carry:
        going_on = torch.tensor([lane is not None and lane.carry for lane in lanes])
        segment = replace(segment, carry=going_on)
    return segment.to(device, non_blocking=True), rows


_NO_ROWS = np.empty(0, dtype=np.int64)


def _segment(source: SequenceSource, lanes: Sequence[Lane | None]) -> Segment:
    """All rows of the lanes as tokens (B, L); kept is what is no padding."""
    lengths = torch.tensor([0 if lane is None else lane.stop - lane.start for lane in lanes], dtype=torch.int64)
    tokens = torch.zeros((len(lanes), max(1, int(lengths.max()))), dtype=torch.int64)
    for number, lane in enumerate(lanes):
        if lane is not None:
            piece = source.tokens[lane.start : lane.stop].astype(np.int64)
            tokens[number, : len(piece)] = torch.from_numpy(piece)
    keep = torch.arange(tokens.shape[1])[None, :] < lengths[:, None]
    return Segment(tokens=tokens, keep=keep, lengths=lengths)
