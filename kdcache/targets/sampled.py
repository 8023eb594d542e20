"""rskd: classes drawn from the teacher's distribution instead of its top k. Encoder and loss.

Source: Anshumann et al. 2025, arXiv:2503.16870; the sampling distribution is p at T=1. The draw is made once, at dump
time: for data that is seen once (tokens). Over many epochs a student memorises a fixed draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.errors import ConfigError, IncompatibleError
from kdcache.targets.method import LossInputs


@torch.no_grad()
def encode_sampled(logits: Tensor, *, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw classes with replacement from softmax(logits) and count them.

    Args:
        logits: (B, K), finite.
        draws: N per row.
        generator: on the device of the logits; seed it from the block, so that a resumed dump draws the same.

    Returns:
        sample_index (B, N) int64, the distinct classes in rising order, then 0; sample_count (B, N) int64, how often
        each was drawn, then 0. Each row of counts sums to N.

    Raises:
        ConfigError: N is not positive.
    """
    if draws < 1:
        raise ConfigError(f"sampled logits: expected at least 1 draw per row, found {draws}")
    drawn = torch.multinomial(logits.float().softmax(dim=1), draws, replacement=True, generator=generator)
    drawn = drawn.sort(dim=1).values
    first = torch.ones_like(drawn)
    first[:, 1:] = (drawn[:, 1:] != drawn[:, :-1]).long()
    place = first.cumsum(dim=1) - 1
    index = torch.zeros_like(drawn).scatter(1, place, drawn)
    return index, torch.zeros_like(drawn).scatter_add(1, place, torch.ones_like(drawn))


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
