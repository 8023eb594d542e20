"""omega_y is the ratio of gradients it claims to be, and the diagnostics say what is in the batch."""

from __future__ import annotations

import pytest
import torch

from kdcache.targets.encode import encode_topk
from kdcache.targets.methods import methods
from kdcache.targets.rescaling import diagnostics, gradient_rescaling, measured_rescaling
from tests.contract.method_cases import Columns


def _case(topk: int = 9) -> tuple[torch.Tensor, object, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    teacher = 2 * torch.randn(40, 9, generator=generator, dtype=torch.float64)
    label = torch.randint(9, (40,), generator=generator)
    student = torch.randn(40, 9, generator=generator, dtype=torch.float64).requires_grad_()
    return student, encode_topk(teacher, label, topk=topk).targets(), label


@pytest.mark.parametrize("name", ["kd", "kd-pt"])
@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 0.5), (4.0, 0.9), (2.0, 0.0)])
def test_it_is_the_ratio_of_gradients_on_the_label_and_on_the_rest(name: str, temperature: float, alpha: float) -> None:
    student, targets, label = _case()
    rows = torch.arange(40)
    (kd,) = torch.autograd.grad(
        methods[name](student, targets, label, temperature=temperature, alpha=alpha).sum(), student
    )
    (ce,) = torch.autograd.grad(methods["ce"](student, None, label).sum(), student)
    omega = gradient_rescaling(student, targets, temperature=temperature, alpha=alpha)
    torch.testing.assert_close(omega, kd[rows, label] / ce[rows, label], rtol=1e-9, atol=1e-9)
    wrong = [grad.sum(1) - grad[rows, label] for grad in (kd, ce)]
    torch.testing.assert_close(omega, wrong[0] / wrong[1], rtol=1e-9, atol=1e-9)


def test_it_survives_a_sure_student_in_float32() -> None:
    teacher = torch.tensor([[20.0, 0.0, 0.0]])
    targets = encode_topk(teacher, torch.tensor([0]), topk=1).targets()
    student = torch.tensor([[25.0, 0.0, 0.0]])
    omega = gradient_rescaling(student, targets, temperature=1.0, alpha=1.0)
    wrong = 2 * torch.exp(torch.tensor(-25.0))
    wanted = 1 - 2 * torch.exp(torch.tensor(-20.0)) / wrong
    torch.testing.assert_close(omega, wanted[None], rtol=1e-4, atol=0)


def test_diagnostics_have_the_same_keys_for_every_batch() -> None:
    student, targets, _ = _case(3)
    whole = diagnostics(student, targets, temperature=4.0, alpha=0.9)
    omega = gradient_rescaling(student, targets, temperature=4.0, alpha=0.9)
    assert whole["omega_mean"] == pytest.approx(float(omega.mean()))
    assert whole["omega_p50"] == pytest.approx(float(omega.quantile(0.5)))
    agreement = (student.argmax(1) == targets.index[:, 0]).double().mean()
    assert whole["teacher_agreement"] == pytest.approx(float(agreement))
    assert -1 <= whole["omega_confidence_correlation"] <= 1
    none = diagnostics(student, targets, temperature=4.0, alpha=0.9, mask=torch.zeros(40, dtype=torch.bool))
    assert set(none) == set(whole)
    assert none["rows"] == 0
    one = diagnostics(student[:1], targets.select(torch.tensor([0])), temperature=4.0, alpha=0.9)
    assert one["omega_confidence_correlation"] == 0


@pytest.mark.parametrize(
    ("name", "topk", "options"),
    [
        ("kd", 9, {"tail": "full"}),
        ("kd", 3, {"tail": "ghost"}),
        ("kd", 3, {"tail": "uniform"}),
        ("kd-pt", 3, {}),
        ("kd-pt+sim", 9, {"mix": "split", "similarity": "mean"}),
    ],
)
def test_the_measured_factor_is_the_closed_form(name: str, topk: int, options: dict[str, object]) -> None:
    student, targets, label = _case(topk)
    context = methods[name].prepare(Columns((targets,)), options=options)
    loss = methods[name](student, targets, label, temperature=4.0, alpha=0.9, options=options, context=context)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    measured = measured_rescaling(student.detach(), gradient, label)
    torch.testing.assert_close(measured, gradient_rescaling(student, targets, temperature=4.0, alpha=0.9))


def test_cross_entropy_is_not_rescaled_and_a_sure_student_is_left_out() -> None:
    student, _, label = _case()
    sure = student.detach().clone()
    sure[0, label[0]] += 60
    sure.requires_grad_()
    (gradient,) = torch.autograd.grad(methods["ce"](sure, None, label).sum(), sure)
    measured = measured_rescaling(sure.detach(), gradient, label)
    assert torch.isnan(measured[0])
    torch.testing.assert_close(measured[1:], torch.ones(39, dtype=torch.float64))
