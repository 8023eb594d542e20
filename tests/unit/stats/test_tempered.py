"""Mass, gradient error and information at (k, T), against dense logits and the gradients of the real losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdcache.stats.figures import AtTemperature
from kdcache.stats.tempered import TemperedSums
from kdcache.targets.divergence import ghost_kl, uniform_kl
from kdcache.targets.encode import encode_topk
from kdcache.targets.soft import SoftTargets
from kdcache.targets.tail import narrow
from tests.logit_store import random_logits

K = 30


def _targets(logits: Tensor, labels: Tensor, topk: int) -> SoftTargets:
    return encode_topk(logits, labels, topk=topk).targets()


def _summed(logits: Tensor, labels: Tensor, topk: int, temperature: float, *, batches: int = 1) -> AtTemperature:
    sums = TemperedSums(temperature, topk=topk, num_classes=logits.shape[1])
    for rows in torch.arange(len(logits)).chunk(batches):
        sums.add(_targets(logits[rows], labels[rows], topk))
    return sums.result()


def _gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), logits)[0].flatten()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("topk", [1, 5, K - 1])
def test_gradient_error_is_that_of_the_real_losses_for_an_untrained_student(temperature: float, topk: int) -> None:
    logits, labels = random_logits(200, K)
    logits = logits.double()
    found = _summed(logits, labels, K, temperature)
    whole = _targets(logits, labels, K)
    student = torch.zeros(200, K, dtype=torch.float64, requires_grad=True)
    truth = _gradient(uniform_kl(student, whole, temperature), student)
    kept = _gradient(uniform_kl(student, narrow(whole, topk), temperature, label_named=False), student)
    error = float((truth - kept).norm() / truth.norm())
    assert found.gradient_error[topk - 1] == pytest.approx(error, rel=2e-3, abs=1e-6)
    assert found.gradient_cosine[topk - 1] == pytest.approx(float(truth @ kept / truth.norm() / kept.norm()), abs=1e-5)


def test_for_an_untrained_student_the_ghost_tail_has_the_gradient_of_the_even_one() -> None:
    logits, _ = random_logits(50, K)
    whole = _targets(logits, logits.argmax(dim=1), 5)  # labels in the top k: both name the same classes
    student = torch.zeros(50, K, requires_grad=True)
    ghost = _gradient(ghost_kl(student, whole, 4.0), student)
    even = _gradient(uniform_kl(student, whole, 4.0), student)
    assert torch.allclose(ghost, even, atol=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_mass_entropy_and_loss_of_information_are_the_dense_ones(temperature: float) -> None:
    logits, labels = random_logits(300, K)
    found = _summed(logits, labels, K, temperature, batches=3)
    p = torch.softmax(logits.double() / temperature, dim=1).sort(dim=1, descending=True).values
    assert found.mass == pytest.approx(p.cumsum(dim=1).mean(dim=0).tolist(), abs=1e-6)
    assert found.effective_classes == pytest.approx(float(torch.special.entr(p).sum(dim=1).exp().mean()), rel=1e-5)
    for k in (1, 4, K - 1):
        even = p.clone()
        even[:, k:] = p[:, k:].mean(dim=1, keepdim=True)
        lost = (p * (p / even).log()).sum(dim=1).mean()
        assert found.kl_lost[k - 1] == pytest.approx(float(lost), rel=1e-4, abs=1e-6)
    assert found.gradient_error[-1] == pytest.approx(0, abs=1e-4)
    assert not found.modelled


@pytest.mark.parametrize(("temperature", "tolerance"), [(1.0, 2e-6), (2.0, 2e-6), (4.0, 2e-3), (8.0, 1e-3)])
def test_a_narrow_store_says_what_the_whole_one_does(temperature: float, tolerance: float) -> None:
    logits, labels = random_logits(400, K)
    whole, narrowed = _summed(logits, labels, K, temperature), _summed(logits, labels, 6, temperature)
    assert narrowed.mass == pytest.approx(whole.mass[:6], abs=tolerance)
    assert narrowed.effective_classes == pytest.approx(whole.effective_classes, rel=0.02)
    assert narrowed.kl_lost == pytest.approx(whole.kl_lost[:6], rel=0.06, abs=2e-3)
    assert narrowed.modelled == (temperature > 2)
    # at T=1 the tail's squares are bounded, not known; from T=2 on its polynomial gives them
    assert narrowed.gradient_error == pytest.approx(whole.gradient_error[:6], rel=0.35 if temperature == 1 else 0.03)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("classes", [30, 200])
def test_beyond_the_stored_k_the_truth_is_between_the_bounds_and_near_the_estimate(
    temperature: float, classes: int
) -> None:
    logits, labels = random_logits(400, classes, seed=3)
    whole, found = _summed(logits, labels, classes, temperature), _summed(logits, labels, 5, temperature)
    assert found.beyond[-1] == classes
    for k, low, high, guess in zip(found.beyond, found.mass_low, found.mass_high, found.mass_estimate, strict=True):
        assert low - 1e-4 <= whole.mass[k - 1] <= high + 1e-4
        assert guess == pytest.approx(whole.mass[k - 1], abs=0.06)
    for sure, unsure in zip(whole.needed, found.needed, strict=True):
        assert sure.topk is not None
        assert unsure.at_least <= sure.topk <= unsure.at_most
        assert unsure.at_least <= unsure.estimate <= unsure.at_most
        assert (unsure.topk == sure.topk) if sure.topk <= 5 else unsure.topk is None


def test_mass_needed_is_the_smallest_k() -> None:
    logits = torch.tensor([0.6, 0.35, 0.04, 0.01]).log().expand(10, 4)
    found = _summed(logits, torch.zeros(10, dtype=torch.int64), 4, 1.0)
    assert [needed.topk for needed in found.needed] == [2, 2, 3]
    assert [needed.share for needed in found.needed] == [0.9, 0.95, 0.99]


def test_an_even_teacher_loses_nothing_and_has_no_gradient() -> None:
    found = _summed(torch.zeros(10, 8), torch.zeros(10, dtype=torch.int64), 2, 1.0)
    assert found.effective_classes == pytest.approx(8, rel=1e-5)
    assert found.kl_lost == pytest.approx((0, 0), abs=1e-6)
    assert all(math.isfinite(value) for value in (*found.gradient_error, *found.gradient_cosine))


def test_a_teacher_without_doubt_keeps_all_in_one_class() -> None:
    logits = torch.full((5, 20), -300.0)
    logits[:, 3] = 0.0
    found = _summed(logits, torch.full((5,), 3), 2, 1.0)
    assert found.mass == pytest.approx((1, 1))
    assert found.effective_classes == pytest.approx(1)
    assert found.gradient_error == pytest.approx((0, 0), abs=1e-6)
