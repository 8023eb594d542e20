"""The contract of METHODS.md section 8 that every row of the method table inherits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdcache.errors import ConfigError, IncompatibleError
from kdcache.targets.method import Method, MethodContext
from kdcache.targets.methods import find_method, methods
from tests.contract.cases import CASES, Case
from tests.contract.method_cases import CLASSES, batch, columns, gradient

every_case = pytest.mark.parametrize("case", CASES, ids=str)


def call(case: Case, student: Tensor, topk: int = CLASSES, seed: int = 0, **changes: object) -> Tensor:
    data = batch(seed)
    return case.loss(data, student, topk=topk, **changes)  # type: ignore[arg-type]


def test_every_method_has_a_case() -> None:
    assert {case.name for case in CASES} == set(methods)


@every_case
def test_with_all_classes_it_equals_the_dense_loss(case: Case) -> None:
    data = batch()
    student = data.student.clone().requires_grad_()
    found, wanted = case.loss(data, student), case.dense_loss(data, student)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=case.tolerance)
    torch.testing.assert_close(gradient(found, student), gradient(wanted, student), rtol=1e-6, atol=case.tolerance)


@every_case
@pytest.mark.parametrize("topk", [1, 4, CLASSES - 1, CLASSES])
def test_gradient_is_the_derivative(case: Case, topk: int) -> None:
    data = batch()
    student = data.student.clone().requires_grad_()
    if not case.supports(topk):
        pytest.skip(f"{case} needs all classes")
    assert torch.autograd.gradcheck(
        lambda x: case.loss(data, x, topk=topk).sum(), (student,), atol=1e-6, fast_mode=True
    )


@every_case
def test_chain_rule_through_a_linear_student(case: Case) -> None:
    data = batch()
    inputs = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(5, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weight.requires_grad_()
    student = inputs @ weight
    through = gradient(case.loss(data, student), weight)
    leaf = student.detach().requires_grad_()
    torch.testing.assert_close(through, inputs.T @ gradient(case.loss(data, leaf), leaf), rtol=1e-10, atol=1e-12)


@every_case
def test_shape_dtype_and_untouched_inputs(case: Case) -> None:
    data = batch()
    targets = data.targets(case.smallest_topk)
    before = [targets.log_prob.clone(), targets.tail.clone(), data.student.clone()]
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        loss = case.loss(data, data.student.to(dtype), topk=case.smallest_topk, single=dtype != torch.float64)
        assert loss.shape == ((8,) if methods[case.name].per_row else ())
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.isfinite(loss).all()
    for old, new in zip(before, [targets.log_prob, targets.tail, data.student], strict=True):
        assert torch.equal(old, new)


@every_case
def test_autocast_does_not_lower_the_loss_precision(case: Case) -> None:
    data = batch()
    student = data.student.float()
    plain = case.loss(data, student, single=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = case.loss(data, student, single=True)
    assert torch.equal(plain, cast)


@every_case
def test_a_constant_added_to_the_logits_changes_nothing(case: Case) -> None:
    data = batch()
    shifted = data.student + torch.linspace(-50, 50, 8, dtype=torch.float64)[:, None]
    topk = case.smallest_topk
    torch.testing.assert_close(case.loss(data, shifted, topk=topk), case.loss(data, data.student, topk=topk))


@every_case
@pytest.mark.parametrize("scale", [1e-3, 50.0, 1e4])
def test_finite_for_extreme_logits(case: Case, scale: float) -> None:
    data = batch(scale=scale)
    for topk in {case.smallest_topk, CLASSES}:
        student = (data.student * scale).float().requires_grad_()
        loss = case.loss(data, student, topk=topk, single=True)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient(loss, student)).all()


@every_case
def test_per_row_losses_do_not_see_other_rows(case: Case) -> None:
    if not methods[case.name].per_row:
        pytest.skip("sees the batch by design")
    data = batch()
    whole = case.loss(data, data.student, topk=case.smallest_topk)
    for row in range(8):
        alone = case.loss(data, data.student, topk=case.smallest_topk, rows=[row])
        torch.testing.assert_close(alone, whole[[row]])


@every_case
def test_masked_rows_give_zero_and_no_gradient_whatever_they_hold(case: Case) -> None:
    if not methods[case.name].per_row:
        pytest.skip("batch methods are given the rows that count")
    data = batch()
    student = data.student.clone()
    student[3] = torch.nan
    student.requires_grad_()
    mask = torch.ones(8, dtype=torch.bool)
    mask[3] = False
    loss = case.loss(data, student, topk=case.smallest_topk, mask=mask)
    grad = gradient(loss, student)
    assert loss[3] == 0
    assert not grad[3].any()
    others = case.loss(data, data.student, topk=case.smallest_topk)
    torch.testing.assert_close(loss[mask], others[mask])
    assert torch.isfinite(grad).all()


@every_case
def test_a_divergence_is_zero_where_student_equals_teacher(case: Case) -> None:
    if not case.zero_at_teacher:
        pytest.skip("not a divergence from the teacher's own distribution")
    data = batch()
    student = data.teacher.clone().requires_grad_()
    for topk in {case.smallest_topk if case.zero_below_full_k else CLASSES, CLASSES}:
        loss = case.loss(data, student, topk=topk, alpha=1.0, temperature=1.0, soft_only=True)
        assert loss.abs().max() < case.zero_within
        assert gradient(loss, student).abs().max() < case.zero_within


@every_case
def test_float16_numbers_move_the_loss_little(case: Case) -> None:
    data = batch()
    topk = case.smallest_topk
    exact = case.loss(data, data.student, topk=topk)
    torch.testing.assert_close(case.loss(data, data.student, topk=topk, rounded=True), exact, rtol=5e-3, atol=2e-2)


@pytest.mark.parametrize("method", methods.values(), ids=lambda method: method.name)
def test_the_table_is_complete(method: Method) -> None:
    assert method.summary
    assert method.equation
    assert method.source
    assert method.status
    assert all(option.help for option in method.options)
    defaults = {option.name: option.default for option in method.options if option.default is not None}
    assert method.checked_options(defaults) == method.checked_options({})
    typed = {name: str(value) for name, value in defaults.items() if not isinstance(value, tuple)}
    assert method.checked_options(typed) == method.checked_options({})


@pytest.mark.parametrize("method", methods.values(), ids=lambda method: method.name)
def test_bad_values_are_refused_with_the_method_named(method: Method) -> None:
    data = batch()
    context = method.prepare(columns(data))
    targets = data.targets()

    def run(**given: object) -> None:
        method(data.student, targets, data.label, context=context, **given)  # type: ignore[arg-type]

    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"method {method.name.replace('+', '.')}.*temperature"):
            run(temperature=temperature)
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="alpha"):
            run(alpha=alpha)
    with pytest.raises(ConfigError, match="no option"):
        run(options={"nonsense": 1})
    for option in method.options:
        with pytest.raises(ConfigError, match=f"option {option.name}: expected"):
            run(options={option.name: object()})
    with pytest.raises(IncompatibleError, match="classes"):
        method(data.student[:, 1:], targets, data.label, context=context)
    if method.needs:
        with pytest.raises(ConfigError, match="needs"):
            method(data.student, None, data.label, context=context)


def test_names_that_are_nearly_right_are_suggested() -> None:
    with pytest.raises(ConfigError, match="nearest: kd-topk"):
        find_method("kd-top")
    with pytest.raises(ConfigError, match="nearest: smoothing"):
        methods["ls"].checked_options({"smothing": 0.1})
    assert find_method("kd") is methods["kd"]


def test_below_temperature_one_a_truncated_tail_warns() -> None:
    data = batch()
    with pytest.warns(UserWarning, match="below 1"):
        methods["kd"](data.student, data.targets(4), data.label, temperature=0.5)
    methods["kd"](data.student, data.targets(), data.label, temperature=0.5)


def test_missing_context_is_refused() -> None:
    data = batch()
    with pytest.raises(ConfigError, match="similarities"):
        methods["kd-sim"](data.student, None, data.label)
    assert methods["kd"].prepare(columns(data)) == MethodContext()


def test_every_method_has_its_section_in_the_docs() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    for name in set(methods) - {"wttm"}:  # described under ttm
        assert f"\n## {name}\n" in text
    assert "`wttm`" in text
