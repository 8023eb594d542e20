"""VID, CRD, the regressor and the embeddings: gradients, minima, and that CRD learns which rows belong together."""

from __future__ import annotations

import importlib

import pytest
import torch

from kdcache.features.learned import ContrastiveLoss, Embedding, Regressor, VariationalLoss
from kdcache.features.maps import fitnet_loss
from kdcache.features.table import DISTILLERS


def test_vid_is_a_gaussian_negative_log_likelihood_with_variance_five_at_the_start() -> None:
    torch.manual_seed(0)
    loss, student, teacher = VariationalLoss(3, 5), torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(loss.variance, torch.full((5,), 5.0))
    normal = torch.distributions.Normal(loss.mean(student), 5.0**0.5)
    expected = -normal.log_prob(teacher).mean() - 0.5 * torch.log(torch.tensor(2 * torch.pi))
    torch.testing.assert_close(loss(student, teacher), expected)


def test_vid_and_fitnet_train_the_student_and_their_own_parts_never_the_teacher() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(4, 5, 4, 4, requires_grad=True)
    regressor, vid = Regressor(3, 5), VariationalLoss(3, 5)
    for part, value in ((regressor, lambda f: fitnet_loss(regressor(f), teacher)), (vid, lambda f: vid(f, teacher))):
        student = torch.randn(4, 3, 8, 8, requires_grad=True)
        value(student).backward()
        assert teacher.grad is None
        assert student.grad is not None
        assert bool(student.grad.abs().sum() > 0)
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in part.parameters())


def test_vid_estimates_the_variance_of_what_cannot_be_predicted() -> None:
    torch.manual_seed(0)
    loss, student = VariationalLoss(2, 2), torch.zeros(64, 2, 2, 2)
    teacher = torch.randn(64, 2, 2, 2) * torch.tensor([0.5, 2.0])[None, :, None, None]
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.08)
    for _ in range(250):
        optimizer.zero_grad()
        loss(student, teacher).backward()
        optimizer.step()
    second_moment = teacher.square().mean(dim=(0, 2, 3))  # a prediction from nothing is 0
    torch.testing.assert_close(loss.variance.detach(), second_moment, rtol=0.02, atol=0.01)


def _crd(**changes: int) -> ContrastiveLoss:
    torch.manual_seed(0)
    return ContrastiveLoss(6, 4, **{"num_rows": 40, "negatives": 32, "width": 16, "seed": 1, **changes})  # type: ignore[arg-type]


def test_crd_learns_to_tell_the_matching_row_from_the_others() -> None:
    loss = _crd()
    features = torch.randn(40, 10)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
    values = []
    for step in range(120):
        rows = torch.randperm(40, generator=torch.Generator().manual_seed(step))[:20]
        value = loss(features[rows, :6], features[rows, 2:6], rows)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert sum(values[-10:]) < 0.7 * sum(values[:10])
    every = torch.arange(40)
    score = loss.contrast(loss.embed_student(features[:, :6]), loss.memory_teacher, every.expand(40, 40))
    matching, others = score.diagonal(), (score.sum(dim=1) - score.diagonal()) / 39
    assert float((matching > others).float().mean()) == 1
    assert float((score.argmax(dim=1) == every).float().mean()) > 0.7


def test_crd_is_decided_by_its_seed_moves_its_memory_and_leaves_the_teacher_alone() -> None:
    first, second = _crd(), _crd()
    student, teacher = torch.randn(5, 6, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    rows = torch.tensor([3, 0, 39, 7, 8])
    before = first.memory_student.clone()
    value = first(student, teacher, rows)
    assert torch.equal(value, second(student, teacher, rows))
    value.backward()
    assert teacher.grad is None
    assert student.grad is not None
    moved = (first.memory_student != before).any(dim=1).nonzero()[:, 0].tolist()
    assert moved == sorted(rows.tolist())
    torch.testing.assert_close(first.memory_student[rows].norm(dim=1), torch.ones(5))
    assert float(first(student[:0], teacher[:0], rows[:0]).detach()) == 0


def test_crd_of_equal_scores_is_the_loss_of_guessing() -> None:
    loss = _crd()
    with torch.no_grad():
        for embedding in (loss.embed_student, loss.embed_teacher):
            embedding.linear.weight.zero_()
            embedding.linear.bias.fill_(1)
        for memory in (loss.memory_student, loss.memory_teacher):
            memory.copy_(torch.full((40, 16), 0.25))
    value = float(loss(torch.randn(5, 6), torch.randn(5, 4), torch.arange(5)).detach())
    noise = 32 / 40  # every e is 1 / N, so h = 1 / (1 + M)
    each = -torch.log(torch.tensor(1 / 33)) - 32 * torch.log(torch.tensor(noise / (1 / 40 + noise)))
    assert value == pytest.approx(2 * float(each), rel=1e-4)


def test_embeddings_are_of_unit_length_only_when_asked() -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 2, 2, 2)
    torch.testing.assert_close(Embedding(8, 4, unit=True)(features).norm(dim=1), torch.ones(3))
    assert not torch.allclose(Embedding(8, 4, unit=False)(features).norm(dim=1), torch.ones(3))


def test_the_table_names_ten_distillers_that_exist() -> None:
    assert set(DISTILLERS) == {"fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "ft", "nst", "crd"}
    for row in DISTILLERS.values():
        module, _, name = row.place.partition(".")
        assert callable(getattr(importlib.import_module(f"kdcache.features.{module}"), name))
    assert DISTILLERS["at"].features == ("layer1", "layer2", "layer3")
    assert DISTILLERS["rkd"].features == ("penultimate",)
