"""Every method on rows that mix two examples: both labels weighted by lambda, or refused with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kdcache.errors import IncompatibleError
from kdcache.targets.encode import encode_topk
from kdcache.targets.method import Method
from kdcache.targets.methods import methods
from kdcache.targets.mixed import seen_from_partner
from kdcache.targets.rescaling import gradient_rescaling
from kdcache.targets.soft import LabelMix, SoftTargets
from kdcache.targets.tail import narrow
from tests.contract.cases import CASES, Case, rounded
from tests.contract.method_cases import CLASSES, Batch, Columns, batch, columns, gradient

ROWS = 8
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def mixed(data: Batch, *, topk: int = CLASSES, weight: Tensor | None = None) -> SoftTargets:
    """Targets whose partner labels stand at every rank of the teacher, the row's own label (row 0) among them."""
    order = data.teacher.argsort(dim=1, descending=True)
    partner = order[torch.arange(ROWS), torch.tensor([0, 1, 3, 4, 5, 7, 10, 11])]
    partner[0] = data.label[0]
    log_prob = data.teacher.log_softmax(dim=1).gather(1, partner[:, None])[:, 0]
    share = torch.linspace(0, 1, ROWS, dtype=torch.float64) if weight is None else weight
    return replace(data.targets(topk), mix=LabelMix(partner_label=partner, weight=share, partner_log_prob=log_prob))


def loss(case: Case, data: Batch, student: Tensor, targets: SoftTargets, label: Tensor) -> Tensor:
    method = methods[case.name]
    context = method.prepare(columns(data, targets.topk), options=case.options)
    return method(student, targets, label, options=case.options, context=context)


def refuses(case: Case) -> bool:
    return case.name in ("dkd", "nkd") or case.options.get("base") == "dkd"


@every_case
def test_a_mixed_loss_is_the_lambda_weighted_loss_of_the_two_labels(case: Case) -> None:
    """With all classes kept the opinion does not depend on the label, so this holds for both kinds of methods."""
    data = batch()
    weight = None if methods[case.name].per_row else torch.full((ROWS,), 0.3, dtype=torch.float64)
    targets = mixed(data, weight=weight)
    if refuses(case):
        with pytest.raises(IncompatibleError, match=f"method {case.name} is not defined on mixed views.*partner's"):
            loss(case, data, data.student, targets, data.label)
        return
    assert targets.mix is not None
    partner = targets.mix.partner_label
    of_partner = replace(Batch(data.teacher, data.student, partner).targets(), sample_index=targets.sample_index)
    of_partner = replace(of_partner, sample_count=targets.sample_count)
    student = data.student.clone().requires_grad_()
    found = loss(case, data, student, targets, data.label)
    own = loss(case, data, student, replace(targets, mix=None), data.label)
    other = loss(case, data, student, of_partner, partner)
    share = targets.mix.weight if methods[case.name].per_row else targets.mix.weight[0]
    wanted = share * own + (1 - share) * other
    tolerance = max(case.tolerance, 1e-9)
    if case.options.get("tail") == "prior":  # the prior's shape is mixed too, where k = K it has no tail to shape
        tolerance = 1e-7
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=tolerance)
    torch.testing.assert_close(gradient(found, student), gradient(wanted, student), rtol=1e-6, atol=tolerance)


@every_case
@pytest.mark.parametrize("topk", [1, 4, CLASSES])
def test_a_row_that_is_not_mixed_has_the_plain_loss(case: Case, topk: int) -> None:
    data = batch()
    if refuses(case) or not case.supports(topk):
        pytest.skip("refused on mixed views, or needs all classes")
    plain = mixed(data, topk=topk, weight=torch.ones(ROWS, dtype=torch.float64))
    found = loss(case, data, data.student, plain, data.label)
    wanted = loss(case, data, data.student, replace(plain, mix=None), data.label)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert plain.mix is not None
    twice = replace(plain, mix=replace(plain.mix, partner_label=data.label, weight=plain.mix.weight * 0.4))
    twice = replace(twice, mix=replace(twice.mix, partner_log_prob=twice.label_log_prob))  # type: ignore[type-var]
    torch.testing.assert_close(loss(case, data, data.student, twice, data.label), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("topk", [1, 2, 4, CLASSES - 2, CLASSES - 1, CLASSES])
@pytest.mark.parametrize("numbers", [3, 4])
def test_seen_from_the_partner_is_what_a_store_of_the_partners_label_holds(topk: int, numbers: int) -> None:
    for seed in range(20):
        data = batch(seed)
        targets = narrow(mixed(data, topk=CLASSES), topk) if topk < CLASSES else mixed(data)
        encoded = encode_topk(data.teacher, data.label, topk=topk, tail_numbers=numbers).targets()
        targets = replace(targets, tail=encoded.tail)
        assert targets.mix is not None
        wanted = encode_topk(data.teacher, targets.mix.partner_label, topk=topk, tail_numbers=numbers).targets()
        found = seen_from_partner(targets)
        assert found.mix is None
        assert torch.equal(found.tail_count, wanted.tail_count)
        torch.testing.assert_close(found.tail, wanted.tail, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.label_log_prob, wanted.label_log_prob)


@pytest.mark.parametrize("case", [case for case in CASES if methods[case.name].on_mixed.each_label], ids=str)
def test_float16_numbers_move_a_mixed_loss_little(case: Case) -> None:
    for seed in range(10):
        data = batch(seed)
        targets = mixed(data, topk=4)
        assert targets.mix is not None
        assert targets.mix.partner_log_prob is not None
        half = replace(targets.mix, partner_log_prob=targets.mix.partner_log_prob.half().double())
        stored = replace(rounded(targets), mix=half)
        exact = loss(case, data, data.student, targets, data.label)
        torch.testing.assert_close(loss(case, data, data.student, stored, data.label), exact, rtol=5e-3, atol=2e-2)


@every_case
def test_masked_mixed_rows_give_zero(case: Case) -> None:
    data = batch()
    method = methods[case.name]
    if refuses(case) or not method.per_row:
        pytest.skip("refused, or sees the batch")
    student = data.student.clone()
    student[3] = torch.nan
    mask = torch.arange(ROWS) != 3
    context = method.prepare(columns(data), options=case.options)
    targets = mixed(data)
    found = method(student, targets, data.label, options=case.options, context=context, mask=mask)
    assert found[3] == 0
    others = loss(case, data, data.student, targets, data.label)
    torch.testing.assert_close(found[mask], others[mask])


def test_a_method_of_the_label_needs_the_teachers_opinion_of_the_partner() -> None:
    data = batch()
    targets = mixed(data)
    assert targets.mix is not None
    without = replace(targets, mix=replace(targets.mix, partner_log_prob=None))
    with pytest.raises(IncompatibleError, match="partner_label_log_prob"):
        methods["kd-pt"](data.student, without, data.label)
    for name in ("ce", "ls", "kd", "kd-topk"):
        assert torch.isfinite(methods[name](data.student, without, data.label)).all()


def test_what_is_about_one_true_class_is_refused() -> None:
    data = batch()
    targets = mixed(data)
    with pytest.raises(IncompatibleError, match="two examples"):
        gradient_rescaling(data.student, targets, temperature=4.0, alpha=0.9)
    store = Columns((targets,), columns(data).class_weight)
    with pytest.raises(IncompatibleError, match="similarity=mean"):
        methods["kd-sim"].prepare(store, options={"similarity": "mean"})


def test_the_confidence_of_kd_sim_is_that_of_both_labels() -> None:
    data = batch()
    targets = mixed(data)
    assert targets.mix is not None
    probabilities = (data.teacher / 1.0).softmax(dim=1)
    both = probabilities.gather(1, data.label[:, None])[:, 0]
    partner = probabilities.gather(1, targets.mix.partner_label[:, None])[:, 0]
    both = both + torch.where(targets.mix.partner_label == data.label, 0.0, partner)
    context = methods["kd-sim"].prepare(Columns((targets,), columns(data).class_weight))
    assert context.facts is not None
    assert context.facts["confidence"] == pytest.approx(min(0.9, float(both.mean())), rel=1e-6)


@pytest.mark.parametrize("method", methods.values(), ids=lambda method: method.name)
def test_the_table_says_what_happens_on_mixed_views(method: Method) -> None:
    assert method.on_mixed.summary
    assert bool(method.on_mixed.refused) == (method.name in ("dkd", "nkd"))
