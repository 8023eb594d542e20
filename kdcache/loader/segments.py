"""Which rows of token data are read together: pure functions of row numbers and sequence boundaries, numpy only.

Two ways of reading. `context_lanes`, for opinions and figures: every asked row after at least C tokens of its own
sequence, whatever else is asked for with it, so that a dump can stop, continue or be shared at any row.
`stream_steps`, for training: every row once per epoch, in order along parallel lanes.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ConfigError
from kdcache.seeding import rng_for


@dataclass(frozen=True)
class Lane:
    """Rows [start, stop) of one sequence, read in order; `carry`: the lane was at `start` one step before."""

    start: int
    stop: int
    carry: bool = False


def context_lanes(rows: NDArray[np.int64], offsets: NDArray[np.int64], context: int) -> list[Lane]:
    """Lanes that show every asked row at least `context` tokens before it (all there are, near a sequence's start).

    A sequence is cut into windows of C rows; a row in window w is read from the start of window w - 1. So a row's lane
    begins at a place that depends on the row, the sequence and C alone: between C and 2C tokens before it.

    Args:
        rows: asked rows, ascending, no repeats.
        offsets: (S + 1,) sequence boundaries.
        context: C, at least 1.

    Returns:
        Lanes in row order; rows with the same beginning share one, which ends after the last of them.

    Raises:
        ConfigError: rows that do not ascend, or a context below 1.
    """
    if context < 1:
        raise ConfigError(f"context: expected at least 1 token, found {context}")
    if len(rows) and bool((np.diff(rows) <= 0).any()):
        raise ConfigError("token rows are read in order: expected ascending row numbers without repeats")
    first = offsets[np.searchsorted(offsets, rows, side="right") - 1]
    starts = first + np.maximum((rows - first) // context - 1, 0) * context
    cuts = np.flatnonzero(np.diff(starts)) + 1
    return [Lane(int(s[0]), int(r[-1]) + 1) for s, r in zip(np.split(starts, cuts), np.split(rows, cuts), strict=True)]


def stream_steps(
    offsets: NDArray[np.int64], *, lanes: int, segment: int, carry: bool, seed: int, epoch: int
) -> list[list[Lane | None]]:
    """The steps of an epoch: for each, what every lane reads. Every row is read exactly once.

    With `carry` a sequence is cut into as few pieces as fill the lanes (one sequence: one piece for each lane, as in
    Zaremba et al. 2014), and a lane walks along its piece step by step, going on where it stopped. Without, every
    `segment` rows are a piece of their own. Pieces are dealt in an order drawn from (seed, epoch), each to the lane
    with the fewest rows so far; where pieces end, a lane begins the next one at the next step.

    Args:
        offsets: (S + 1,) sequence boundaries.
        lanes: parallel streams B.
        segment: most rows of a lane in one step, L.
        carry: whether the model's state goes on within a piece.
        seed, epoch: decide the order.

    Returns:
        steps x lanes; None where a lane has run out.

    Raises:
        ConfigError: a count below 1.
    """
    if lanes < 1 or segment < 1:
        raise ConfigError(f"token rows: expected at least 1 lane and 1 row in a segment, found {lanes} and {segment}")
    longest = max(segment, -(-int(offsets[-1]) // lanes)) if carry else segment
    pieces = [
        (begin, min(begin + longest, stop))
        for start, stop in itertools.pairwise(offsets.tolist())
        for begin in range(start, stop, longest)
    ]
    order = rng_for("token-order", seed, epoch).permutation(len(pieces))
    work: list[list[Lane]] = [[] for _ in range(lanes)]
    free = [(0, lane) for lane in range(lanes)]
    for number in order:
        start, stop = pieces[int(number)]
        load, lane = heapq.heappop(free)
        cut = range(start, stop, segment)
        work[lane] += [Lane(begin, min(begin + segment, stop), carry and begin > start) for begin in cut]
        heapq.heappush(free, (load + stop - start, lane))
    steps = max(len(lane) for lane in work)
    return [[lane[step] if step < len(lane) else None for lane in work] for step in range(steps)]
