"""Laws of the distillers on vectors: what defines RKD, PKT and CC, hand-worked numbers, degenerate batches."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdcache.errors import IncompatibleError
from kdcache.features.maps import similarity_loss
from kdcache.features.vectors import (
    angles,
    congruence_loss,
    neighbour_probabilities,
    probabilistic_loss,
    relational_loss,
    relative_distances,
)

Loss = Callable[[Tensor, Tensor], Tensor]
RELATIONS = (relational_loss, probabilistic_loss)
ALL = (*RELATIONS, congruence_loss)


def _rows(seed: int = 0, *, width: int = 6) -> Tensor:
    return torch.randn(7, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("loss", ALL)
def test_zero_for_equal_features_and_a_gradient_for_the_student(loss: Loss) -> None:
    teacher, student = _rows(), _rows(1).requires_grad_()
    assert float(loss(teacher.clone(), teacher)) == pytest.approx(0, abs=1e-12)
    assert float(loss(student.detach(), teacher)) > 1e-6
    assert torch.autograd.gradcheck(lambda given: loss(given, teacher), (student,), atol=1e-5)


@pytest.mark.parametrize("loss", RELATIONS)
def test_the_teacher_gets_no_gradient(loss: Loss) -> None:
    teacher = _rows().requires_grad_()
    loss(_rows(1).requires_grad_(), teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("loss", RELATIONS)
def test_a_rotation_and_a_common_scale_do_not_count_and_widths_may_differ(loss: Loss) -> None:
    student, teacher = _rows(1), _rows(width=9)
    turn, _ = torch.linalg.qr(_rows(5)[:6, :])
    before = float(loss(student, teacher))
    assert float(loss(student @ turn * 4, teacher * 0.3)) == pytest.approx(before, rel=1e-6)
    assert float(loss(teacher @ torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))[0], teacher)) < 1e-12


def test_rkd_ignores_a_shift_and_pkt_the_length_of_each_row() -> None:
    student, teacher = _rows(1), _rows()
    assert float(relational_loss(student + 100, teacher)) == pytest.approx(float(relational_loss(student, teacher)))
    longer = student * torch.arange(1, 8, dtype=torch.float64)[:, None]
    assert float(probabilistic_loss(longer, teacher)) == pytest.approx(float(probabilistic_loss(student, teacher)))
    assert float(relational_loss(longer, teacher)) != pytest.approx(float(relational_loss(student, teacher)))


def test_pkt_probabilities_sum_to_one_and_the_loss_is_their_mean_divergence_over_b() -> None:
    student, teacher = _rows(1), _rows()
    q, p = neighbour_probabilities(student), neighbour_probabilities(teacher)
    torch.testing.assert_close(p.sum(dim=1), torch.ones(7, dtype=torch.float64))
    divergence = (p * (p / q).log()).sum(dim=1).mean() / 7
    assert float(probabilistic_loss(student, teacher)) == pytest.approx(float(divergence), rel=1e-4)


def test_rkd_relations_of_a_right_triangle() -> None:
    corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(
        relative_distances(corners), torch.tensor([[0, 3, 4], [3, 0, 5], [4, 5, 0]], dtype=torch.float64) / 4
    )
    cosine = angles(corners)
    assert float(cosine[0, 1, 2]) == pytest.approx(0)  # the right angle
    assert float(cosine[1, 0, 2]) == pytest.approx(3 / 5)
    assert float(cosine[2, 0, 1]) == pytest.approx(4 / 5)
    equal = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]], dtype=torch.float64)
    huber = [(2 * 0.5 * sum((d / 4 - 1) ** 2 for d in (3, 4, 5)) / 9)]
    turns = 2 * 0.5 * sum((c - 0.5) ** 2 for c in (0, 3 / 5, 4 / 5)) / 27
    assert float(relational_loss(equal, corners)) == pytest.approx(25 * huber[0] + 50 * turns, rel=1e-9)


def test_cc_multiplies_neighbouring_differences() -> None:
    student = torch.tensor([[1.0, 2.0], [0.0, 1.0], [4.0, 0.0]])
    teacher = torch.tensor([[0.0, 0.0], [2.0, 1.0], [1.0, 1.0]])
    assert float(congruence_loss(student, teacher)) == pytest.approx((1 * 2 + 2 * 0 + 2 * 3 + 0 * 1) / 2)
    with pytest.raises(IncompatibleError, match="cc: expected two"):
        congruence_loss(student, teacher[:, :1])


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("rows", [0, 1])
def test_without_two_rows_there_is_nothing_to_compare(loss: Loss, rows: int) -> None:
    student = torch.randn(rows, 4, requires_grad=True)
    loss(student, torch.randn(rows, 4)).backward()
    assert student.grad is not None
    assert float(student.grad.abs().sum()) == 0


@pytest.mark.parametrize("loss", [*RELATIONS, similarity_loss])
@pytest.mark.parametrize("level", [0.0, 0.3], ids=["zero", "equal"])
@pytest.mark.parametrize("equal", [2, 7])
def test_rows_that_are_equal_or_zero_have_gradients_of_the_usual_size(loss: Loss, level: float, equal: int) -> None:
    """A student that has collapsed, or starts as a constant, must be able to train: no division by a length of 0."""
    values, teacher = _rows(1).float(), _rows().float()
    usual = values.clone().requires_grad_()
    loss(usual, teacher).backward()
    values[:equal] = level
    student = values.requires_grad_()
    value = loss(student, teacher)
    value.backward()
    assert bool(torch.isfinite(value))
    assert student.grad is not None
    assert usual.grad is not None
    assert float(student.grad.abs().max()) < 100 * float(usual.grad.abs().max())
