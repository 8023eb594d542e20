"""lskd's spread is exact, ctkd's temperature is trained against the student, wttm weights unsure rows."""

from __future__ import annotations

import pytest
import torch

from kdcache.errors import ConfigError
from kdcache.targets.methods import methods
from kdcache.targets.transformed import LearnedTemperature, reversal_scale, teacher_spread
from tests.contract.method_cases import batch, columns


@pytest.mark.parametrize("topk", [1, 4, 12])
def test_teacher_spread_is_exact_for_any_k(topk: int) -> None:
    data = batch()
    torch.testing.assert_close(teacher_spread(data.targets(topk)), data.teacher.std(1))


def test_a_step_on_the_learned_temperature_raises_the_loss() -> None:
    data = batch()
    targets = data.targets(4)
    context = methods["ctkd"].prepare(columns(data))
    assert context.module is not None
    theta = next(context.module.parameters())
    before = methods["ctkd"](data.student, targets, data.label, context=context).mean()
    before.backward()
    assert theta.grad is not None
    with torch.no_grad():
        theta -= 0.01 * theta.grad.sign()
    after = methods["ctkd"](data.student, targets, data.label, context=context).mean()
    assert after > before


def test_the_reversal_grows_from_nothing_to_all_in_ten_epochs() -> None:
    scales = [reversal_scale(epoch) for epoch in (0.0, 2.0, 5.0, 8.0, 10.0, 100.0)]
    assert scales == sorted(scales)
    assert scales[0] == 0
    assert scales[2] == pytest.approx(0.5)
    assert scales[-2:] == [1.0, 1.0]
    assert reversal_scale(None) == 1.0
    module = LearnedTemperature()
    module(0.0).backward()
    assert next(module.parameters()).grad == 0
    assert 1 < module(1.0).item() < 21


def test_ctkd_without_its_parameter_is_refused() -> None:
    data = batch()
    with pytest.raises(ConfigError, match="learned temperature"):
        methods["ctkd"](data.student, data.targets(4), data.label)


def test_wttm_weighs_unsure_rows_more() -> None:
    data = batch()
    data.teacher[0] = 0.0  # no opinion: weight K^(1 - 1/T)
    data.teacher[1] = 50.0 * torch.nn.functional.one_hot(data.label[1], 12)  # certain: weight near 1
    targets = data.targets()
    soft = {
        name: methods[name](data.student, targets, data.label, temperature=4.0, options={"hard_weight": 0})
        for name in ("ttm", "wttm")
    }
    weight = soft["wttm"] / soft["ttm"]
    assert float(weight[0]) == pytest.approx(12**0.75)
    assert float(weight[1]) == pytest.approx(1.0, abs=1e-3)


def test_dkd_warms_up() -> None:
    data = batch()
    context = methods["dkd"].prepare(columns(data))

    def loss(epoch: float | None) -> torch.Tensor:
        here = context if epoch is None else context.at_epoch(epoch)
        return methods["dkd"](data.student, data.targets(), data.label, context=here)

    hard = methods["ce"](data.student, None, data.label)
    torch.testing.assert_close(loss(0.0), hard)
    torch.testing.assert_close(loss(10.0) - hard, (loss(None) - hard) / 2)
    torch.testing.assert_close(loss(40.0), loss(None))


@pytest.mark.parametrize("topk", [1, 4, 11, 12])
@pytest.mark.parametrize("tail", ["ghost", "uniform", "decoupled", "renormalised"])
def test_the_learned_temperature_has_a_finite_gradient_where_some_tails_are_empty(topk: int, tail: str) -> None:
    data = batch()
    context = methods["ctkd"].prepare(columns(data))
    assert context.module is not None
    methods["ctkd"](
        data.student, data.targets(topk), data.label, context=context, options={"tail": tail}
    ).sum().backward()
    gradient = next(context.module.parameters()).grad
    assert gradient is not None
    assert torch.isfinite(gradient)
    assert gradient != 0
