"""rskd: classes drawn from the teacher's distribution instead of its top k. Encoder and loss.

Source: Anshumann et al. 2025, arXiv:2503.16870; the sampling distribution is p at T=1. The draw is made once, at dump
time: for data that is seen once (tokens). Over many epochs a student memorises a fixed draw. Draws are a pure function
of (seed, row, view) and the row's probabilities, so batches and restarts change nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.errors import ConfigError, IncompatibleError
from kdcache.seeding import philox4x32, stream_key, unit_interval
from kdcache.targets.method import LossInputs

MOST_DRAWS = 65_535  # a store counts in uint16, and all draws may fall on one class
_WORDS = 4  # of one Philox counter
_LARGEST_PIECE = 2**23  # probabilities held at a time in float64: 64 MiB


def draw_uniforms(rows: NDArray[np.int64], *, seed: int, view: int, draws: int) -> NDArray[np.float64]:
    """The random numbers of some rows: (B, N) in [0, 1), each row's a pure function of (seed, row, view).

    Args:
        rows: (B,) row numbers.
        seed: of the store.
        view: view number.
        draws: N per row; the first draws of a larger N are those of a smaller one.

    Raises:
        ConfigError: N is not between 1 and 65,535.
    """
    if not 1 <= draws <= MOST_DRAWS:
        raise ConfigError(f"samples: expected 1 to {MOST_DRAWS} draws per row, found {draws}")
    counters = np.empty((_WORDS, len(rows), -(-draws // _WORDS)), dtype=np.uint32)
    counters[0], counters[1] = (rows & 0xFFFFFFFF)[:, None], (rows >> 32)[:, None]
    counters[2], counters[3] = view, np.arange(counters.shape[2])
    words = philox4x32(counters, stream_key("sampled-classes", seed) & (2**64 - 1))
    return unit_interval(words.transpose(1, 2, 0).reshape(len(rows), -1)[:, :draws])


@torch.no_grad()
def encode_sampled(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draw classes with replacement from softmax(logits) and count them.

    Args:
        logits: (B, K), finite.
        uniforms: (B, N) float64 in [0, 1), see `draw_uniforms`.

    Returns:
        sample_index (B, N) int64, the distinct classes in rising order, then 0; sample_count (B, N) int64, how often
        each was drawn, then 0. Each row of counts sums to N.
    """
    places, step = uniforms.to(logits.device), max(1, _LARGEST_PIECE // logits.shape[1])
    parts = [slice(start, start + step) for start in range(0, len(logits), step)]
    drawn = torch.cat([_inverse_cumulative(logits[part], places[part]) for part in parts]).sort(dim=1).values
    first = torch.ones_like(drawn)
    first[:, 1:] = (drawn[:, 1:] != drawn[:, :-1]).long()
    place = first.cumsum(dim=1) - 1
    index = torch.zeros_like(drawn).scatter(1, place, drawn)
    return index, torch.zeros_like(drawn).scatter_add(1, place, torch.ones_like(drawn))


def _inverse_cumulative(logits: Tensor, uniforms: Tensor) -> Tensor:
    """(B, N) int64: the class in whose share of [0, 1) each number falls; a class of probability 0 has no share."""
    # float64: in float32 the running sum over 150,000 classes would lose the rare ones
    cumulative = logits.double().softmax(dim=1).cumsum(dim=1)
    found = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    return found.clamp_(max=logits.shape[1] - 1)


def rskd_loss(inputs: LossInputs) -> Tensor:
    """(1 - alpha) CE + alpha H(t, q), t_i = count_i / N, student at T=1; (B,) nats.

    Its mean over draws is H(p, q), and so is its gradient. There is no temperature: counts drawn at T=1 cannot be
    re-tempered without bias.

    Raises:
        IncompatibleError: the targets carry no samples.
    """
    index, count = inputs.targets.sample_index, inputs.targets.sample_count
    if index is None or count is None:
        raise IncompatibleError(
            "method rskd needs sample_index and sample_count, which these targets do not carry",
            hint="run dump-teacher with --samples N",
        )
    partition = inputs.student.logsumexp(dim=1)
    weight = count.to(inputs.student.dtype)
    weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=1)
    cross = partition - (weight * inputs.student.gather(1, index)).sum(dim=1)
    return inputs.alpha * cross + (1 - inputs.alpha) * inputs.hard()
