"""Laws of the distillers on feature maps: zero for equal maps, no gradient for the teacher, their invariances."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdcache.errors import IncompatibleError
from kdcache.features.maps import (
    attention_loss,
    attention_map,
    factor_loss,
    fitnet_loss,
    row_similarity,
    selectivity_loss,
    similarity_loss,
)

Loss = Callable[[Tensor, Tensor], Tensor]
ALL = (fitnet_loss, attention_loss, similarity_loss, selectivity_loss, factor_loss)
ANY_CHANNELS = (attention_loss, similarity_loss, selectivity_loss, factor_loss)


def _maps(*, channels: int = 6, side: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(5, channels, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("loss", ALL)
def test_zero_when_the_student_equals_the_teacher_and_positive_otherwise(loss: Loss) -> None:
    maps = _maps()
    assert float(loss(maps, maps.clone())) == pytest.approx(0, abs=1e-12)
    assert float(loss(_maps(seed=1), maps)) > 1e-4


@pytest.mark.parametrize("loss", ALL)
def test_the_gradient_is_the_students_alone_and_right(loss: Loss) -> None:
    student, teacher = _maps(seed=1).requires_grad_(), _maps().requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert bool(student.grad.abs().sum() > 0)
    assert torch.autograd.gradcheck(lambda given: loss(given, teacher.detach()), (student,), atol=1e-5)


@pytest.mark.parametrize("loss", ANY_CHANNELS)
def test_other_channel_counts_and_sizes_are_compared_at_the_smaller_size(loss: Loss) -> None:
    small, large = _maps(channels=3, side=2), _maps(channels=6, side=4, seed=2)
    if loss is not similarity_loss:
        pooled = torch.nn.functional.adaptive_avg_pool2d(large, (2, 2))
        assert float(loss(small, large)) == pytest.approx(float(loss(small, pooled)))
        assert float(loss(large, small)) == pytest.approx(float(loss(pooled, small)))
    assert float(loss(small, large)) > 0


@pytest.mark.parametrize("loss", ANY_CHANNELS)
def test_the_scale_of_either_side_does_not_count(loss: Loss) -> None:
    student, teacher = _maps(seed=1), _maps()
    assert float(loss(3.5 * student, 0.2 * teacher)) == pytest.approx(float(loss(student, teacher)), rel=1e-9)


@pytest.mark.parametrize("loss", [attention_loss, selectivity_loss, factor_loss])
def test_order_and_sign_of_channels_do_not_count(loss: Loss) -> None:
    student, teacher = _maps(seed=1), _maps()
    shuffled = -student[:, torch.tensor([3, 1, 5, 0, 2, 4])]
    assert float(loss(shuffled, teacher)) == pytest.approx(float(loss(student, teacher)), rel=1e-9)


def test_similarity_ignores_a_rotation_of_the_features_but_not_of_the_rows() -> None:
    student, teacher = _maps(seed=1).flatten(1), _maps()
    turn, _ = torch.linalg.qr(torch.randn(96, 96, dtype=torch.float64))
    before = float(similarity_loss(student, teacher))
    assert float(similarity_loss(student @ turn, teacher)) == pytest.approx(before, rel=1e-9)
    assert float(similarity_loss(student.roll(1, dims=0), teacher)) != pytest.approx(before, rel=1e-3)
    torch.testing.assert_close(row_similarity(teacher).norm(dim=1), torch.ones(5, dtype=torch.float64))


def test_hand_worked_numbers() -> None:
    assert float(fitnet_loss(torch.ones(1, 1, 1, 2), torch.tensor([[[[1.0, 4.0]]]]))) == pytest.approx(4.5)
    maps = torch.tensor([[[[1.0, 0.0]], [[1.0, 2.0]]]])  # mean square 1 and 2, so (1, 2) / sqrt 5
    torch.testing.assert_close(attention_map(maps), torch.tensor([[1.0, 2.0]]) / 5**0.5)
    even = torch.ones(1, 1, 1, 2)
    gap = ((1 / 5**0.5 - 0.5**0.5) ** 2 + (2 / 5**0.5 - 0.5**0.5) ** 2) / 2
    assert float(attention_loss(even, maps)) == pytest.approx(gap, rel=1e-5)
    one, other = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0]]]])
    assert float(selectivity_loss(one, other)) == pytest.approx(2.0)  # 1 + 1 - 2 * 0


@pytest.mark.parametrize("loss", ALL)
def test_maps_of_other_rows_are_refused(loss: Loss) -> None:
    with pytest.raises(IncompatibleError, match="same rows"):
        loss(_maps(), _maps()[:3])


def test_fitnet_needs_the_teachers_channels() -> None:
    with pytest.raises(IncompatibleError, match="6 channels against 3"):
        fitnet_loss(_maps(), _maps(channels=3))
