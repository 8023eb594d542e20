"""The gradients of METHODS.md section 3 to 1e-10, and what each tail's optimum is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdcache.errors import ConfigError
from kdcache.targets import divergence
from kdcache.targets.encode import encode_topk
from kdcache.targets.soft import SoftTargets
from kdcache.targets.split import TeacherSplit, split_teacher

CLASSES, TOPK, TEMPERATURE = 15, 4, 3.0


class Setting:
    """Teacher and student at T, dense, beside the sparse targets."""

    def __init__(self, topk: int = TOPK) -> None:
        generator = torch.Generator().manual_seed(0)
        self.teacher = 3 * torch.randn(6, CLASSES, generator=generator, dtype=torch.float64)
        self.student = torch.randn(6, CLASSES, generator=generator, dtype=torch.float64).requires_grad_()
        # labels at ranks 0, 2, .. 10: inside the top 4 and outside
        self.label = self.teacher.argsort(1, descending=True)[torch.arange(6), 2 * torch.arange(6)]
        self.targets = encode_topk(self.teacher, self.label, topk=topk).targets()
        self.split: TeacherSplit = split_teacher(self.targets, TEMPERATURE)
        self.inside = torch.zeros(6, CLASSES, dtype=torch.bool)
        self.inside.scatter_(1, self.targets.index, True).scatter_(1, self.label[:, None], True)
        self.p = torch.zeros(6, CLASSES, dtype=torch.float64).scatter_add(1, self.split.index, self.split.prob)
        self.pi = self.split.tail_prob[:, None]
        self.q = (self.student / TEMPERATURE).softmax(1).detach()
        self.rho = (self.q * ~self.inside).sum(1, keepdim=True)
        self.n = (~self.inside).sum(1, keepdim=True)

    def gradient(self, loss: Callable[..., Tensor], *more: Tensor, **options: float) -> Tensor:
        """d loss / d x, times T."""
        total = loss(self.student, self.targets, TEMPERATURE, *more, **options).sum()
        (found,) = torch.autograd.grad(total, self.student)
        return TEMPERATURE * found

    def close(self, found: Tensor, inside: Tensor, outside: Tensor) -> None:
        torch.testing.assert_close(found, torch.where(self.inside, inside, outside), rtol=0, atol=1e-10)


def test_ghost_gradient() -> None:
    s = Setting()
    s.close(s.gradient(divergence.ghost_kl), s.q - s.p, s.q * (1 - s.pi / s.rho))


def test_uniform_gradient() -> None:
    s = Setting()
    s.close(s.gradient(divergence.uniform_kl), s.q - s.p, s.q - s.pi / s.n)


def test_prior_gradient() -> None:
    s = Setting()
    prior = torch.rand(6, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    shape = prior * ~s.inside
    s.close(s.gradient(divergence.prior_kl, prior), s.q - s.p, s.q - s.pi * shape / shape.sum(1, keepdim=True))


def test_renormalised_gradient_and_its_exact_error() -> None:
    s = Setting()
    found = s.gradient(divergence.renormalised_kl)
    s.close(found, s.q - s.p / (1 - s.pi), s.q)
    full = (s.teacher / TEMPERATURE).softmax(1)
    full = full * torch.where(
        s.inside, (s.p * s.inside).sum(1, keepdim=True) / (full * s.inside).sum(1, keepdim=True), 1
    )
    tail = full * ~s.inside
    tail = tail * s.pi / tail.sum(1, keepdim=True)
    exact = s.q - torch.where(s.inside, s.p, tail)
    torch.testing.assert_close((found - exact).abs().sum(1), 2 * s.pi[:, 0], rtol=0, atol=1e-10)


def test_full_gradient() -> None:
    s = Setting(CLASSES)
    p = (s.teacher / TEMPERATURE).softmax(1)
    torch.testing.assert_close(s.gradient(divergence.full_kl), s.q - p, rtol=0, atol=1e-10)


def test_decoupled_with_the_head_mass_as_weight_is_ghost() -> None:
    s = Setting()
    ghost = divergence.ghost_kl(s.student, s.targets, TEMPERATURE)
    masses = divergence.decoupled_kl(s.student, s.targets, TEMPERATURE, head_weight=0.0)
    head = divergence.decoupled_kl(s.student, s.targets, TEMPERATURE, head_weight=1.0) - masses
    torch.testing.assert_close(masses + (1 - s.pi[:, 0]) * head, ghost, rtol=0, atol=1e-10)


def test_ghost_is_full_minus_the_tail_term() -> None:
    s = Setting()
    exact = Setting(CLASSES)
    temperature = 1.0  # where the stored tail mass is exact
    p, q = s.teacher.log_softmax(1), s.student.log_softmax(1)
    out = ~s.inside
    log_pi = p.masked_fill(~out, -torch.inf).logsumexp(1, keepdim=True)
    log_rho = q.masked_fill(~out, -torch.inf).logsumexp(1, keepdim=True)
    inside_tail = ((p.exp() * ((p - log_pi) - (q - log_rho))) * out).sum(1)
    full = divergence.full_kl(exact.student, exact.targets, temperature)
    ghost = divergence.ghost_kl(s.student, s.targets, temperature)
    torch.testing.assert_close(full - inside_tail, ghost, rtol=0, atol=1e-10)
    assert (ghost <= full).all()


def test_kd_topk_target_is_the_top_k_alone() -> None:
    s = Setting()
    found = divergence.uniform_kl(s.student, s.targets, TEMPERATURE, label_named=False)
    split = split_teacher(s.targets, TEMPERATURE, label_named=False)
    dense = (split.tail_prob / (CLASSES - TOPK))[:, None].expand(-1, CLASSES).scatter(1, split.index, split.prob)
    torch.testing.assert_close(dense.sum(1), torch.ones(6, dtype=torch.float64))
    wanted = torch.nn.functional.kl_div((s.student / TEMPERATURE).log_softmax(1), dense, reduction="none").sum(1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_full_refuses_a_truncated_tail() -> None:
    s = Setting()
    with pytest.raises(ConfigError, match="topk all"):
        divergence.full_kl(s.student, s.targets, TEMPERATURE)


def test_log_rho_keeps_its_digits_when_the_head_holds_nearly_all() -> None:
    student = torch.zeros(1, CLASSES)
    student[0, 0] = 60.0  # the tail's mass is 1e-25: 1 - sum would be 0 in float32
    teacher = torch.randn(1, CLASSES, generator=torch.Generator().manual_seed(3))
    targets: SoftTargets = encode_topk(teacher, torch.tensor([0]), topk=1).targets()
    student.requires_grad_()
    loss = divergence.ghost_kl(student, targets, 1.0)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert torch.isfinite(loss).all()
    assert gradient.abs().max() > 1e-3
