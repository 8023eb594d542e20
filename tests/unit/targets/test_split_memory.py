"""A batch's split is found once per temperature, and never where that could be seen in a result."""

from __future__ import annotations

from dataclasses import replace

import torch

from kdcache.targets.methods import methods
from kdcache.targets.soft import SoftTargets
from kdcache.targets.split import split_teacher
from tests.contract.method_cases import batch


def _targets() -> SoftTargets:
    return batch().targets(4)


def test_the_same_question_has_one_answer_and_others_have_theirs() -> None:
    targets = _targets()
    first = split_teacher(targets, 4.0)
    assert split_teacher(targets, 4) is first
    assert split_teacher(targets, 2.0) is not first
    assert split_teacher(targets, 4.0, label_named=False).index.shape[1] == 4
    assert split_teacher(targets, torch.tensor(4.0)) is not first


def test_changed_targets_forget_it() -> None:
    targets = _targets()
    split_teacher(targets, 4.0)
    for other in (
        replace(targets, log_prob=targets.log_prob - 1),
        targets.select(torch.tensor([1, 0])),
        targets.to("cpu"),
    ):
        assert not other.splits


def test_a_teacher_that_is_differentiated_is_not_remembered() -> None:
    targets = replace(_targets(), log_prob=_targets().log_prob.requires_grad_())
    split_teacher(targets, 4.0)
    assert not targets.splits


def test_a_look_in_inference_mode_leaves_nothing_a_later_step_would_fail_on() -> None:
    data, targets = batch(), _targets()
    with torch.inference_mode():
        methods["dkd"](data.student, targets, data.label)
    student = data.student.clone().requires_grad_()
    methods["dkd"](student, targets, data.label).sum().backward()
    assert student.grad is not None


def test_remembering_changes_no_number() -> None:
    data = batch()
    for name in ("kd", "kd-topk", "kd-pt", "dkd", "nkd"):
        targets = _targets()
        once, again = (methods[name](data.student, targets, data.label) for _ in range(2))
        assert torch.equal(once, again)
        assert torch.equal(once, methods[name](data.student, _targets(), data.label))
