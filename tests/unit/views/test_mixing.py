"""Mixing: pixels follow the recorded weight or box, at any resolution, and the label's weight says the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdcache.errors import ConfigError
from kdcache.views.mixing import Mix, mix_batch, mixing_of
from kdcache.views.ops import Cutmix, HorizontalFlip, Mixup, MixupOrCutmix, Op
from kdcache.views.policy import ViewPolicy

N = 200


def _mix(op: Op, n: int = N) -> Mix:
    policy = ViewPolicy(ops=(HorizontalFlip(), op), seed=3)
    outcomes = policy.sample(np.arange(n), 0, sizes=np.full((n, 2), 32), num_rows=n)
    mix = mixing_of(policy, outcomes)
    assert mix is not None
    return mix


def _inputs(side: int, seed: int, n: int = N) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_a_policy_without_mixing_has_no_mix() -> None:
    policy = ViewPolicy.from_preset("cifar")
    assert mixing_of(policy, policy.sample(np.arange(3), 0, sizes=np.full((3, 2), 32), num_rows=3)) is None


def test_mixup_is_the_weighted_sum() -> None:
    mix, own, other = _mix(Mixup()), _inputs(8, 0), _inputs(8, 1)
    weight = torch.from_numpy(mix.weight)[:, None, None, None]
    torch.testing.assert_close(mix_batch(own, other, mix), weight * own + (1 - weight) * other)
    assert 0 <= mix.weight.min() < 0.05
    assert 0.95 < mix.weight.max() <= 1


@pytest.mark.parametrize("side", [8, 33, 224])
def test_cutmix_takes_every_pixel_from_one_of_the_two_in_the_share_of_the_label(side: int) -> None:
    n = 40
    mix = _mix(Cutmix(), n)
    own, other = torch.zeros(n, 1, side, side), torch.ones(n, 1, side, side)
    mixed = mix_batch(own, other, mix)
    assert set(mixed.unique().tolist()) <= {0.0, 1.0}
    share = mixed.mean(dim=(1, 2, 3))
    assert (share - (1 - torch.from_numpy(mix.weight))).abs().max() < 2.0 / side


def test_a_row_of_weight_one_is_unchanged_to_the_bit() -> None:
    mix = _mix(MixupOrCutmix(probability=0.3))
    own, other = _inputs(8, 0), _inputs(8, 1)
    mixed = mix_batch(own, other, mix)
    alone = mix.weight == 1
    assert 0.5 < alone.mean() < 0.9
    np.testing.assert_array_equal(mix.partner[alone & (mix.partner == np.arange(N))], np.flatnonzero(alone))
    assert torch.equal(mixed[alone], own[alone])


def test_the_mix_of_a_row_does_not_depend_on_the_batch() -> None:
    mix, own, other = _mix(MixupOrCutmix()), _inputs(9, 0), _inputs(9, 1)
    whole = mix_batch(own, other, mix)
    for rows in (slice(0, 1), slice(3, 10), slice(50, 51)):
        part = Mix(partner=mix.partner[rows], weight=mix.weight[rows], box=mix.box[rows])
        assert torch.equal(mix_batch(own[rows], other[rows], part), whole[rows])


def test_mixing_before_or_after_normalising_is_the_same() -> None:
    mix = _mix(MixupOrCutmix())
    own, other = torch.rand(N, 3, 8, 8), torch.rand(N, 3, 8, 8)

    def normalise(x: torch.Tensor) -> torch.Tensor:
        return (x - 0.45) / 0.22

    torch.testing.assert_close(mix_batch(normalise(own), normalise(other), mix), normalise(mix_batch(own, other, mix)))


def test_the_inputs_are_left_alone() -> None:
    own, other = _inputs(8, 0), _inputs(8, 1)
    mix_batch(own, other, _mix(MixupOrCutmix()))
    assert torch.equal(own, _inputs(8, 0))
    assert torch.equal(other, _inputs(8, 1))


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    mix = _mix(Mixup(), 4)
    with pytest.raises(ConfigError, match="shapes differ"):
        mix_batch(_inputs(8, 0, 4), _inputs(9, 0, 4), mix)
    with pytest.raises(ConfigError, match="shapes differ"):
        mix_batch(_inputs(8, 0, 3), _inputs(8, 0, 3), mix)
    with pytest.raises(ConfigError, match="float"):
        mix_batch(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, 3, 8, 8, dtype=torch.uint8), mix)
