"""rskd: draws depend on (seed, row, view) alone, counts are what was drawn, their mean is the full gradient."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kdcache.errors import ConfigError, IncompatibleError
from kdcache.targets.encode import encode_topk
from kdcache.targets.methods import methods
from kdcache.targets.sampled import draw_uniforms, encode_sampled


def _logits(rows: int) -> torch.Tensor:
    return 2 * torch.randn(rows, 9, generator=torch.Generator().manual_seed(0))


def _uniforms(rows: int, draws: int, *, seed: int = 1, view: int = 0) -> torch.Tensor:
    return torch.from_numpy(draw_uniforms(np.arange(rows), seed=seed, view=view, draws=draws))


def test_counts_sum_to_the_draws_over_distinct_classes() -> None:
    index, count = encode_sampled(_logits(50), _uniforms(50, 12))
    assert index.shape == count.shape == (50, 12)
    assert (count.sum(1) == 12).all()
    for row_index, row_count in zip(index, count, strict=True):
        used = row_index[row_count > 0].tolist()
        assert used == sorted(set(used))
        assert not row_index[row_count == 0].any()


def test_a_draw_is_the_class_whose_share_of_the_unit_interval_it_falls_into() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    places = torch.tensor([[0.0, 0.05, 0.1001, 0.2999, 0.3001, 0.5999, 0.6001, 0.9999999]], dtype=torch.float64)
    index, count = encode_sampled(logits, places)
    assert index[0, :4].tolist() == [0, 1, 2, 3]
    assert count[0].tolist() == [2, 2, 2, 2, 0, 0, 0, 0]


def test_a_class_without_probability_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).clamp(min=-1e4).expand(500, -1)
    index, count = encode_sampled(logits, _uniforms(500, 8))
    assert set(index[count > 0].tolist()) == {1, 3}


def test_random_numbers_depend_on_seed_row_and_view_alone() -> None:
    rows = np.array([5, 0, 2**40 + 5, 17])
    whole = draw_uniforms(rows, seed=3, view=2, draws=7)
    for place, row in enumerate(rows):
        assert np.array_equal(draw_uniforms(np.array([row]), seed=3, view=2, draws=7)[0], whole[place])
    assert len(np.unique(whole)) == whole.size
    for other in ({"seed": 4, "view": 2}, {"seed": 3, "view": 1}):
        assert not np.intersect1d(draw_uniforms(rows, draws=7, **other), whole).size
    assert np.array_equal(draw_uniforms(rows, seed=3, view=2, draws=40)[:, :7], whole)
    assert 0 <= whole.min() < whole.max() < 1


def test_the_numbers_are_uniform() -> None:
    """Kolmogorov-Smirnov distance over all, and no correlation between neighbouring rows or draws."""
    numbers = draw_uniforms(np.arange(5000), seed=0, view=0, draws=8)
    ordered = np.sort(numbers.ravel())
    assert np.abs(ordered - (np.arange(ordered.size) + 0.5) / ordered.size).max() < 1.6 / np.sqrt(ordered.size)
    assert abs(np.corrcoef(numbers[1:].ravel(), numbers[:-1].ravel())[0, 1]) < 4 / np.sqrt(numbers.size)
    assert abs(np.corrcoef(numbers[:, 1:].ravel(), numbers[:, :-1].ravel())[0, 1]) < 4 / np.sqrt(numbers.size)


def test_large_vocabularies_are_drawn_in_pieces_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encode_sampled(_logits(20), _uniforms(20, 6))
    monkeypatch.setattr("kdcache.targets.sampled._LARGEST_PIECE", 30)
    pieces = encode_sampled(_logits(20), _uniforms(20, 6))
    assert all(torch.equal(one, two) for one, two in zip(whole, pieces, strict=True))


def test_mean_gradient_of_ten_thousand_draws_is_the_full_gradient() -> None:
    draws = 10_000
    teacher = _logits(1).expand(draws, -1)
    label = torch.zeros(draws, dtype=torch.int64)
    index, count = encode_sampled(teacher, _uniforms(draws, 5, seed=2))
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
    for draws in (0, 65_536):
        with pytest.raises(ConfigError, match="expected 1 to 65535 draws"):
            draw_uniforms(np.arange(2), seed=0, view=0, draws=draws)
    label = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(IncompatibleError, match="sample_index"):
        methods["rskd"](_logits(2), encode_topk(_logits(2), label, topk=3).targets(), label)
