"""rskd: counts are what was drawn, and their mean over draws is the full distillation gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdcache.errors import ConfigError, IncompatibleError
from kdcache.targets.encode import encode_topk
from kdcache.targets.methods import methods
from kdcache.targets.sampled import encode_sampled


def _logits(rows: int) -> torch.Tensor:
    return 2 * torch.randn(rows, 9, generator=torch.Generator().manual_seed(0))


def test_counts_sum_to_the_draws_over_distinct_classes() -> None:
    index, count = encode_sampled(_logits(50), draws=12, generator=torch.Generator().manual_seed(1))
    assert index.shape == count.shape == (50, 12)
    assert (count.sum(1) == 12).all()
    for row_index, row_count in zip(index, count, strict=True):
        used = row_index[row_count > 0].tolist()
        assert used == sorted(set(used))
        assert not row_index[row_count == 0].any()


def test_the_same_generator_draws_the_same() -> None:
    first, second = (encode_sampled(_logits(5), draws=7, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_mean_gradient_of_ten_thousand_draws_is_the_full_gradient() -> None:
    draws = 10_000
    teacher = _logits(1).expand(draws, -1)
    label = torch.zeros(draws, dtype=torch.int64)
    index, count = encode_sampled(teacher, draws=5, generator=torch.Generator().manual_seed(2))
    targets = replace(encode_topk(teacher, label, topk=9).targets(), sample_index=index, sample_count=count)
    student = torch.zeros(draws, 9, requires_grad=True)
    (found,) = torch.autograd.grad(methods["rskd"](student, targets, label, alpha=1.0).sum(), student)
    wanted = 1 / 9 - teacher[0].softmax(0)
    error = (teacher[0].softmax(0) * (1 - teacher[0].softmax(0)) / (5 * draws)).sqrt()
    assert ((found.mean(0) - wanted).abs() < 5 * error + 1e-6).all()


def test_the_fixed_top_k_gradient_is_biased_where_the_draws_are_not() -> None:
    teacher, label = _logits(1), torch.zeros(1, dtype=torch.int64)
    targets = encode_topk(teacher, label, topk=2).targets()
    student = torch.zeros(1, 9, requires_grad=True)
    loss = methods["kd"](student, targets, label, temperature=1.0, alpha=1.0, options={"tail": "renormalised"})
    (found,) = torch.autograd.grad(loss.sum(), student)
    assert (found[0] - (1 / 9 - teacher[0].softmax(0))).abs().sum() > 0.1


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 draw"):
        encode_sampled(_logits(2), draws=0, generator=torch.Generator())
    label = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(IncompatibleError, match="sample_index"):
        methods["rskd"](_logits(2), encode_topk(_logits(2), label, topk=3).targets(), label)
