"""The tail at any temperature: exact where it must be, bounded elsewhere, and unlike the mistakes of other systems."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcache.errors import ConfigError
from kdcache.targets.encode import encode_topk
from kdcache.targets.soft import SoftTargets
from kdcache.targets.tail import (
    label_to_tail,
    log_partition,
    log_power_sum,
    log_tail_mass,
    narrow,
    tail_of,
    tail_with_label,
)

CLASSES = 30
CASES = {
    "seed": st.integers(0, 10_000),
    "topk": st.integers(1, CLASSES),
    "numbers": st.sampled_from([3, 4]),
    "scale": st.sampled_from([0.1, 1.0, 4.0]),
}


def _case(seed: int, topk: int, numbers: int = 3, scale: float = 2.0, rows: int = 5) -> tuple[Tensor, SoftTargets]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, CLASSES, generator=generator, dtype=torch.float64)
    label = torch.randint(CLASSES, (rows,), generator=generator)
    return logits, encode_topk(logits, label, topk=topk, tail_numbers=numbers).targets()


def _true_tail(logits: Tensor, targets: SoftTargets, temperature: float) -> Tensor:
    """log of the summed p^T outside top k and label, from all logits."""
    log_prob = (logits / temperature).log_softmax(1)
    hidden = log_prob.scatter(1, targets.index, -torch.inf).scatter(1, targets.label[:, None], -torch.inf)
    return hidden.logsumexp(1)


@settings(max_examples=40, deadline=None)
@given(**CASES)
def test_tail_mass_is_exact_at_temperature_one(seed: int, topk: int, numbers: int, scale: float) -> None:
    logits, targets = _case(seed, topk, numbers, scale)
    torch.testing.assert_close(log_tail_mass(targets, 1.0), _true_tail(logits, targets, 1.0), rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(**{**CASES, "numbers": st.just(4)}, as_tensor=st.booleans())
def test_four_numbers_are_exact_at_temperature_two(
    seed: int, topk: int, numbers: int, scale: float, as_tensor: bool
) -> None:
    logits, targets = _case(seed, topk, numbers, scale)
    temperature = torch.tensor(2.0, dtype=torch.float64) if as_tensor else 2.0
    torch.testing.assert_close(log_tail_mass(targets, temperature), _true_tail(logits, targets, 2.0))


@settings(max_examples=60, deadline=None)
@given(**CASES, bits=st.integers(3, 10))
def test_rounded_numbers_keep_the_masses_they_hold(seed: int, topk: int, numbers: int, scale: float, bits: int) -> None:
    """The clamp returns the stored A(1) and A(1/2) whatever rounding did to the other numbers."""
    _, targets = _case(seed, topk, numbers, scale)
    step = 2.0**-bits
    mantissa, exponent = torch.frexp(targets.tail)
    rounded = torch.where(targets.tail.isinf(), targets.tail, torch.ldexp((mantissa / step).round() * step, exponent))
    tail = tail_of(replace(targets, tail=rounded))
    torch.testing.assert_close(log_power_sum(tail, 1.0), tail.log_mass, rtol=1e-9, atol=1e-9)
    if tail.half_log_mass is not None:
        torch.testing.assert_close(log_power_sum(tail, 2.0), tail.half_log_mass, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(**CASES)
def test_tail_mass_is_exact_in_the_limit_of_high_temperature(seed: int, topk: int, numbers: int, scale: float) -> None:
    logits, targets = _case(seed, topk, numbers, scale)
    torch.testing.assert_close(log_tail_mass(targets, 1e4), _true_tail(logits, targets, 1e4), rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(**CASES, temperature=st.floats(0.2, 20.0))
def test_power_sum_stays_inside_the_convexity_bounds(
    seed: int, topk: int, numbers: int, scale: float, temperature: float
) -> None:
    _, targets = _case(seed, topk, numbers, scale)
    tail, b = tail_of(targets), 1 / temperature
    found = log_power_sum(tail, temperature)
    some = tail.count > 0
    assert torch.equal(torch.isinf(found), ~some)
    log_n, found, mass = tail.count[some].log(), found[some], tail.log_mass[some]
    mean, ceiling = tail.mean[some], tail.ceiling[some]
    slack = 1e-9
    if tail.half_log_mass is not None:
        half = tail.half_log_mass[some]
        known = [(0.0, log_n), (0.5, half), (1.0, mass)]
        for (b1, a1), (b2, a2) in pairwise(known):
            line = a1 + (b - b1) * (a2 - a1) / (b2 - b1)
            assert ((found <= line + slack) if b1 <= b <= b2 else (found >= line - slack)).all()
    if b <= 1:
        assert (found >= log_n + b * mean - slack).all()
        assert (found <= log_n + b * ceiling + slack).all()
    else:
        assert (found >= log_n + b * (mass - log_n) - slack).all()
        assert (found <= mass + (b - 1) * ceiling + slack).all()


@pytest.mark.parametrize(("temperature", "bound"), [(2.0, 2e-3), (4.0, 5e-4), (8.0, 3e-5)])
@pytest.mark.parametrize("numbers", [3, 4])
def test_between_the_exact_points_the_error_is_small(temperature: float, bound: float, numbers: int) -> None:
    logits, targets = _case(3, 5, numbers, rows=500)
    found, truth = log_tail_mass(targets, temperature), _true_tail(logits, targets, temperature)
    kl = truth.exp() * (truth - found) + (-truth.exp()).log1p().exp() * (
        (-truth.exp()).log1p() - (-found.exp()).log1p()
    )
    assert 0 <= kl.mean() < bound


@pytest.mark.parametrize("temperature", [1.5, 3.0, 4.0])
def test_the_fourth_number_helps(temperature: float) -> None:
    errors = []
    for numbers in (3, 4):
        logits, targets = _case(4, 5, numbers, rows=500)
        errors.append((log_tail_mass(targets, temperature) - _true_tail(logits, targets, temperature)).abs().mean())
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize("numbers", [3, 4])
@pytest.mark.parametrize("temperature", [0.5, 0.9, 1.5, 3.0, 50.0])
def test_it_is_differentiable_in_the_temperature(numbers: int, temperature: float) -> None:
    _, targets = _case(5, 6, numbers)
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: log_tail_mass(targets, x).sum(), (t,))
    per_row = torch.full((5,), temperature, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: log_partition(targets, x), (per_row,))
    full = _case(5, CLASSES)[1]
    (gradient,) = torch.autograd.grad(log_partition(full, t).sum(), t)
    assert torch.isfinite(gradient)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), topk=st.integers(1, CLASSES), kept=st.integers(1, CLASSES), four=st.booleans())
def test_narrowing_equals_encoding_with_fewer(seed: int, topk: int, kept: int, four: bool) -> None:
    kept = min(kept, topk)
    logits, targets = _case(seed, topk, 4 if four else 3)
    wanted = encode_topk(logits, targets.label, topk=kept, tail_numbers=4 if four else 3).targets()
    found = narrow(targets, kept)
    for name in ("index", "log_prob", "tail", "label", "label_log_prob"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-9, atol=1e-12)
    assert torch.equal(found.tail_count, wanted.tail_count)


def test_narrowing_a_very_sure_teacher_gives_numbers_that_float16_holds() -> None:
    """The spread of classes at log p = -1 and -900 is above 65,504: a store of the smaller k keeps 60,000, too."""
    logits = torch.cat([torch.linspace(0, -1, 10), torch.linspace(-900, -901, 10)])[None]
    whole = encode_topk(logits, torch.tensor([0]), topk=20).targets()
    fewer = encode_topk(logits, torch.tensor([0]), topk=3).targets()
    found = narrow(whole, 3).tail
    torch.testing.assert_close(found, fewer.tail)
    assert bool(torch.isfinite(found.half()).all())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), topk=st.integers(1, CLASSES - 1))
def test_label_to_tail_gives_the_statistics_outside_the_top_k(seed: int, topk: int) -> None:
    logits, targets = _case(seed, topk, 4)
    ordered = logits.log_softmax(1).sort(1, descending=True).values[:, topk:]
    wanted = [ordered.logsumexp(1), ordered.mean(1), ordered.var(1, unbiased=False), (ordered / 2).logsumexp(1)]
    torch.testing.assert_close(label_to_tail(targets), torch.stack(wanted, 1), rtol=1e-9, atol=1e-9)
    assert (tail_with_label(targets).count == CLASSES - topk).all()


@pytest.mark.parametrize("numbers", [3, 4])
def test_narrowing_rounded_numbers_is_well_conditioned(numbers: int) -> None:
    logits, targets = _case(7, 20, numbers, rows=200)
    half = {name: getattr(targets, name).half().double() for name in ("log_prob", "tail", "label_log_prob")}
    found = narrow(replace(targets, **half), 5)
    wanted = encode_topk(logits, targets.label, topk=5, tail_numbers=numbers).targets()
    assert (found.tail - wanted.tail).abs().max() < 0.02


@pytest.mark.parametrize("topk", [0, 11])
def test_narrowing_checks_k(topk: int) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 10"):
        narrow(_case(0, 10)[1], topk)


class TestMistakesOfOtherSystems:
    """Each gives another distribution, by far more than this one's error (K = 30, k = 5, T = 4)."""

    temperature = 4.0

    def setup_method(self) -> None:
        self.logits, self.targets = _case(11, 5, scale=3.0, rows=200)
        self.truth = _true_tail(self.logits, self.targets, self.temperature).exp()
        found = log_tail_mass(self.targets, self.temperature).exp()
        self.error = (found - self.truth).abs().mean()
        self.named = torch.cat([self.targets.log_prob, self.targets.label_log_prob[:, None]], 1)
        self.named[self.targets.label_in_topk, -1] = -torch.inf

    def test_our_error_is_small(self) -> None:
        assert self.error < 0.01

    def test_tempering_the_leftover_as_one_token(self) -> None:
        buckets = torch.cat([self.named, self.targets.tail[:, :1]], 1) / self.temperature
        wrong = buckets.softmax(1)[:, -1]
        assert (wrong - self.truth).abs().mean() > 20 * self.error

    def test_softmax_over_probabilities(self) -> None:
        prob = self.logits.softmax(1)
        wrong = (prob / self.temperature).softmax(1)
        right = (self.logits / self.temperature).softmax(1)
        assert (wrong - right).abs().sum(1).mean() > 20 * self.error

    def test_logit_zero_for_missing_classes(self) -> None:
        filled = torch.zeros_like(self.logits).scatter(1, self.targets.index, self.targets.log_prob)
        wrong = (filled / self.temperature).softmax(1).scatter(1, self.targets.index, 0.0).sum(1)
        assert (wrong - self.truth).abs().mean() > 5 * self.error

    def test_renormalised_head(self) -> None:
        assert self.truth.mean() > 20 * self.error  # it says the tail is empty

    def test_tempering_counts_sampled_at_temperature_one(self) -> None:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.multinomial(self.logits.softmax(1), 1000, replacement=True, generator=generator)
        counts = torch.zeros_like(self.logits).scatter_add(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        wrong = counts.pow(1 / self.temperature)
        wrong = wrong / wrong.sum(1, keepdim=True)
        right = (self.logits / self.temperature).softmax(1)
        assert (wrong - right).abs().sum(1).mean() > 5 * self.error
