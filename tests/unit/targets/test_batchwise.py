"""Dense rows are the distribution the head and tail describe; two views add their soft parts; masks drop rows."""

from __future__ import annotations

import pytest
import torch

from kdcache.targets.batchwise import dense_rows
from kdcache.targets.methods import methods
from tests.contract.method_cases import CLASSES, batch


@pytest.mark.parametrize("topk", [1, 4, CLASSES - 1, CLASSES])
def test_dense_rows_sum_to_one_and_keep_the_named_classes(topk: int) -> None:
    data = batch()
    rows = dense_rows(data.targets(topk), 1.0)
    torch.testing.assert_close(rows.sum(1), torch.ones(8, dtype=torch.float64))
    truth = data.teacher.softmax(1)
    named = torch.cat([data.targets(topk).index, data.label[:, None]], 1)
    torch.testing.assert_close(rows.gather(1, named), truth.gather(1, named))


def test_two_equal_views_double_the_soft_part_only() -> None:
    data = batch()
    targets = data.targets()
    one = methods["mlkd"](data.student, targets, data.label)
    two = methods["mlkd"](data.student, targets, data.label, second=(data.student, targets))
    hard = methods["ce"](data.student, None, data.label).mean()
    torch.testing.assert_close(two - hard, 2 * (one - hard))


@pytest.mark.parametrize("name", ["dist", "mlkd"])
def test_masked_rows_do_not_enter_the_statistics(name: str) -> None:
    data = batch()
    mask = torch.arange(8) != 3
    student = data.student.clone()
    student[3] = torch.nan
    found = methods[name](student, data.targets(4), data.label, mask=mask)
    wanted = methods[name](data.student[mask], data.targets(4).select(mask), data.label[mask])
    torch.testing.assert_close(found, wanted)
