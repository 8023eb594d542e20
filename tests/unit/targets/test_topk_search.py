"""`search_topk` is `Tensor.topk`, number for number and place for place, for numbers of any sign and any crowding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.targets.topk_search import search_topk


def _check(values: torch.Tensor, topk: int) -> None:
    before = values.clone()
    found = search_topk(values, topk, scratch=torch.empty_like(values))
    wanted = values.topk(topk, dim=1)
    assert found[0].contiguous().numpy().tobytes() == wanted[0].numpy().tobytes()
    assert torch.equal(found[1], wanted[1])
    assert values.numpy().tobytes() == before.numpy().tobytes()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6),
    classes=st.integers(4, 3000),
    share=st.floats(0, 1),
    step=st.sampled_from([0.0, 1e-3, 0.5]),
    lift=st.sampled_from([-50.0, 0.0, 50.0]),
    seed=st.integers(0, 10_000),
)
def test_equals_torch_for_any_shape(rows: int, classes: int, share: float, step: float, lift: float, seed: int) -> None:
    values = 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)) + lift
    if step:
        values = (values / step).round() * step
    _check(values, topk=max(1, round(share * (classes // 2 - 1))))


@pytest.mark.parametrize("special", [torch.inf, -torch.inf, -0.0, 0.0, 1e-45, -1e-45])
@pytest.mark.parametrize("count", [1, 40, 1500])
def test_equals_torch_with_special_numbers(special: float, count: int) -> None:
    values = torch.randn(5, 3000, generator=torch.Generator().manual_seed(1))
    values[1:4, torch.randperm(3000, generator=torch.Generator().manual_seed(2))[:count]] = special
    values[4] = special
    _check(values, topk=20)


def test_a_row_of_nan_among_others_equals_torch() -> None:
    values = torch.randn(3, 3000, generator=torch.Generator().manual_seed(1))
    values[1] = torch.nan
    _check(values, topk=20)


def test_rows_without_anything_to_search_are_left_to_torch() -> None:
    _check(torch.zeros(3, 5000), topk=64)
