"""Agreement between views: divergences against dense ones, and the number of views against a simulation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdcache.stats.agreement import AgreementSums, Opinion, divergence, inner_product
from kdcache.targets.encode import encode_topk
from tests.logit_store import random_logits


def _opinion(logits: Tensor, labels: Tensor, topk: int) -> Opinion:
    return Opinion.of(encode_topk(logits, labels, topk=topk).targets())


def _completed(logits: Tensor, labels: Tensor, topk: int) -> Tensor:
    """Dense (B, K): top k and label as they are, the others evenly."""
    p = torch.softmax(logits.double(), dim=1)
    named = torch.zeros_like(p, dtype=torch.bool)
    named.scatter_(1, p.topk(topk, dim=1).indices, True).scatter_(1, labels[:, None], True)
    rest = p.masked_fill(named, 0).sum(dim=1, keepdim=True) / (~named).sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(named, p, rest)


@pytest.mark.parametrize("topk", [1, 4, 12])
def test_divergence_and_inner_product_are_those_of_the_completed_opinions(topk: int) -> None:
    first, labels = random_logits(200, 12, seed=1)
    second = first + 0.7 * random_logits(200, 12, seed=2)[0]
    p, q = (_completed(logits, labels, topk) for logits in (first, second))
    a, b = (_opinion(logits, labels, topk) for logits in (first, second))
    assert torch.allclose(divergence(a, b), (p * (p / q).log()).sum(dim=1), rtol=1e-5, atol=1e-6)
    assert torch.allclose(inner_product(a, b), (p * q).sum(dim=1), rtol=1e-5, atol=1e-7)
    assert torch.allclose(inner_product(a, a), p.square().sum(dim=1), rtol=1e-5, atol=1e-7)
    assert torch.allclose(inner_product(a, b), inner_product(b, a), atol=1e-7)


def test_a_view_agrees_with_itself() -> None:
    logits, labels = random_logits(100, 20)
    opinion = _opinion(logits, labels, 3)
    sums = AgreementSums(complete=False)
    sums.add(opinion, opinion)
    found = sums.result()
    assert found is not None
    assert (found.top1_agreement, found.suggested, found.modelled) == (1.0, 1, True)
    assert found.symmetric_kl == pytest.approx(0, abs=1e-9)
    assert found.spread == pytest.approx(0, abs=1e-9)


def test_no_pairs_no_figures() -> None:
    assert AgreementSums(complete=True).result() is None


def test_the_error_of_the_mean_of_v_views_is_what_a_simulation_finds() -> None:
    generator = torch.Generator().manual_seed(4)
    base, labels = random_logits(300, 10, seed=5)
    views = [base + torch.randn(300, 10, generator=generator) for _ in range(200)]
    sums = AgreementSums(complete=True)
    opinions = [_opinion(view, labels, 10) for view in views]
    for before, after in zip(opinions, [*opinions[1:], opinions[0]], strict=True):
        sums.add(before, after)
    found = sums.result()
    assert found is not None
    p = torch.stack([torch.softmax(view.double(), dim=1) for view in views])
    truth = p.mean(dim=0)
    for count in (1, 4, 8):
        means = p[: 200 // count * count].view(-1, count, 300, 10).mean(dim=1)
        error = ((means - truth).square().sum(dim=(1, 2)).mean() / truth.square().sum()).sqrt()
        assert found.error[found.views.index(count)] == pytest.approx(float(error), rel=0.05)
    assert (found.spread / found.suggested) ** 0.5 <= 0.1 < (found.spread / (found.suggested - 1)) ** 0.5
    assert found.views[-1] >= found.suggested
