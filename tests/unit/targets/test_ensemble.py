"""The mean of several teachers: exact with every class, bounded below that."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdcache.errors import ConfigError
from kdcache.targets.encode import encode_topk
from kdcache.targets.ensemble import mean_opinion
from kdcache.targets.soft import SoftTargets
from kdcache.targets.tail import log_tail_mass, narrow

K, B = 40, 200


def _logits(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(B, K, generator=torch.Generator().manual_seed(99))
    return 3.0 * shared + 1.5 * torch.randn(B, K, generator=generator)


def _members(topk: int, count: int = 3) -> tuple[list[SoftTargets], Tensor, Tensor]:
    labels = torch.arange(B) % K
    logits = [_logits(seed) for seed in range(count)]
    truth = torch.stack([one.softmax(dim=1) for one in logits]).mean(dim=0)
    return [encode_topk(one, labels, topk=topk).targets() for one in logits], truth, labels


@pytest.mark.parametrize("topk", [1, 5, K])
def test_with_every_class_stored_the_mean_is_that_of_the_probabilities(topk: int) -> None:
    members, truth, labels = _members(K)
    mean = mean_opinion(members, topk=topk)
    expected = encode_topk(truth.log(), labels, topk=topk).targets()
    torch.testing.assert_close(mean.targets.log_prob, expected.log_prob, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mean.targets.tail, expected.tail, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mean.targets.label_log_prob, expected.label_log_prob, atol=1e-5, rtol=1e-5)
    assert bool((mean.targets.index == expected.index).float().mean() > 0.999)
    assert not mean.bound.any()


@pytest.mark.parametrize("topk", [3, 10, 30])
def test_below_every_class_the_error_stays_under_its_bound(topk: int) -> None:
    members, truth, _ = _members(topk)
    mean = mean_opinion(members, topk=topk)
    head = torch.zeros(B, K + 1).scatter_(1, mean.targets.index, mean.targets.log_prob.exp())
    head.scatter_(1, mean.targets.label[:, None], mean.targets.label_log_prob.exp()[:, None])
    named = head[:, :K] > 0
    head[:, K] = log_tail_mass(mean.targets, 1.0).exp()
    true = torch.cat([truth * named, (truth * ~named).sum(dim=1, keepdim=True)], dim=1)
    apart = (head - true).abs().sum(dim=1) / 2
    torch.testing.assert_close(head.sum(dim=1), torch.ones(B), atol=1e-4, rtol=0)
    assert bool((apart <= mean.bound + 1e-5).all())
    assert bool((apart > 1e-6).any()), "the approximation cannot be exact: is the truth computed from the members?"


def test_two_equal_teachers_are_one_teacher() -> None:
    labels = torch.arange(B) % K
    one = encode_topk(_logits(0), labels, topk=6).targets()
    mean = mean_opinion([one, one], topk=6).targets
    assert torch.equal(mean.index, one.index)
    torch.testing.assert_close(mean.log_prob, one.log_prob, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mean.tail[:, 0], one.tail[:, 0], atol=1e-4, rtol=1e-4)


def test_the_order_of_the_teachers_does_not_matter() -> None:
    members, _, _ = _members(5)
    forward, backward = mean_opinion(members, topk=5).targets, mean_opinion(members[::-1], topk=5).targets
    torch.testing.assert_close(forward.log_prob, backward.log_prob, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(forward.tail, backward.tail, atol=1e-4, rtol=1e-4)


def test_the_approximate_tail_is_close_at_other_temperatures() -> None:
    members, truth, labels = _members(10)
    mean = mean_opinion(members, topk=10).targets
    expected = encode_topk(truth.log(), labels, topk=10).targets()
    for temperature in (1.0, 2.0, 4.0):
        found, wanted = log_tail_mass(mean, temperature).exp(), log_tail_mass(expected, temperature).exp()
        assert float((found - wanted).abs().mean()) < 0.1 * float(wanted.mean()), temperature


@pytest.mark.parametrize("topk", [3, 10])
def test_the_tail_of_sure_teachers_is_one_that_k_classes_can_have(topk: int) -> None:
    """Log p spreads over tens of nats: a normal tail without a ceiling held its mass in a fraction of one class."""
    labels = torch.arange(B) % K
    logits = [4.0 * _logits(seed) for seed in range(2)]
    truth = torch.stack([one.double().softmax(dim=1) for one in logits]).mean(dim=0).log().float()
    mean = mean_opinion([encode_topk(one, labels, topk=topk).targets() for one in logits], topk=topk).targets
    mass, half, most = mean.tail[:, 0], mean.tail[:, 3], math.log(K - topk)
    assert bool(((half >= mass / 2 - 1e-4) & (half <= (most + mass) / 2 + 1e-4)).all())
    expected = encode_topk(truth, labels, topk=topk).targets()
    for temperature in (2.0, 4.0):
        found, wanted = log_tail_mass(mean, temperature).exp(), log_tail_mass(expected, temperature).exp()
        assert float((found - wanted).abs().mean()) < 0.2 * float(wanted.mean()), temperature


def test_labels_and_k_must_belong_together() -> None:
    members, _, labels = _members(5)
    other = encode_topk(_logits(7), (labels + 1) % K, topk=5).targets()
    with pytest.raises(ConfigError, match="labels or classes"):
        mean_opinion([members[0], other], topk=5)
    with pytest.raises(ConfigError, match="smallest k"):
        mean_opinion(members, topk=6)
    assert math.isfinite(float(mean_opinion(members, topk=1).targets.tail.sum()))


@pytest.mark.parametrize("stored", [7, 8])
def test_a_class_that_is_as_good_as_impossible_does_not_spoil_the_tail(stored: int) -> None:
    """exp(-150) is 0 in float32: its logarithm, written into the tail's mean and spread, is no opinion about T = 4."""
    logits = torch.tensor([[0.0, -3.0, -5.0, -6.0, -7.0, -8.0, -150.0, -160.0]])
    label = torch.tensor([0])
    members = [narrow(encode_topk(logits + shift, label, topk=8).targets(), stored) for shift in (0.0, 1.0)]
    mean, expected = mean_opinion(members, topk=4).targets, encode_topk(logits, label, topk=4).targets()
    torch.testing.assert_close(mean.log_prob, expected.log_prob, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mean.tail, expected.tail, atol=1e-2, rtol=1e-3)
    assert float(log_tail_mass(mean, 4.0)) == pytest.approx(float(log_tail_mass(expected, 4.0)), abs=1e-3)
