"""The hand-written pass over the student's logits against plain autograd, with holes, and through a kept graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdcache.targets.divergence import ghost_kl, uniform_kl
from kdcache.targets.encode import encode_topk
from kdcache.targets.head_sums import HOLE, bucket_logits, head_sums

ROWS, CLASSES = 5, 9


def _logits(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64)


def _index(count: int) -> Tensor:
    order = torch.rand(ROWS, CLASSES, generator=torch.Generator().manual_seed(7)).argsort(dim=1)
    return order[:, :count].clone()


def _holes(index: Tensor) -> tuple[Tensor, Tensor]:
    """Rows 0 and 2 name a class twice; row 1 is said to have no tail."""
    repeated, empty = torch.zeros(ROWS, dtype=torch.bool), torch.zeros(ROWS, dtype=torch.bool)
    repeated[[0, 2]], empty[1] = True, True
    index[[0, 2], -1] = index[[0, 2], 0]
    return repeated, empty


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_it_equals_the_form_autograd_differentiates(temperature: float) -> None:
    index = _index(4)
    repeated, empty = _holes(index)
    weights = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, wanted = _logits().requires_grad_(), _logits().requires_grad_()
    buckets, rest = head_sums(found, index, temperature, repeated=repeated, empty=empty, with_rest=True)
    plain = bucket_logits(wanted, index, torch.tensor(temperature, dtype=torch.float64), repeated=repeated, empty=empty)
    assert rest is not None
    torch.testing.assert_close(buckets, plain[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rest, plain[1], rtol=1e-12, atol=1e-12)
    holes = buckets == HOLE
    assert holes.sum() == 3
    for buckets_of, rest_of in ((buckets, rest), plain):
        ((buckets_of * weights).masked_fill(holes, 0.0).tanh().sum() + rest_of.square().sum()).backward()
    torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("with_rest", [False, True])
def test_gradient_is_the_derivative(with_rest: bool) -> None:
    index = _index(4)
    repeated, empty = _holes(index)

    def sums(logits: Tensor) -> Tensor:
        buckets, rest = head_sums(logits, index, 3.0, repeated=repeated, empty=empty, with_rest=with_rest)
        total = buckets.masked_fill(buckets == HOLE, 0.0).square().sum()
        return total if rest is None else total + rest.square().sum()

    assert torch.autograd.gradcheck(sums, (_logits().requires_grad_(),))


def test_a_kept_graph_gives_the_same_gradient_again() -> None:
    logits = _logits().requires_grad_()
    buckets, _ = head_sums(logits, _index(3), 2.0)
    loss = buckets.square().sum()
    first, second, third = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(3))
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_a_tail_far_below_the_head_keeps_its_digits() -> None:
    logits = torch.zeros(1, 6)
    logits[0, 0] = 1e4
    buckets, _ = head_sums(logits, torch.tensor([[0]]), 1.0)
    torch.testing.assert_close(buckets[0, 1], torch.tensor(5.0).log())


@pytest.mark.parametrize("loss", [ghost_kl, uniform_kl])
@pytest.mark.parametrize("place", [0, CLASSES - 1])
def test_with_one_class_unnamed_the_loss_is_exact(loss, place: int) -> None:  # type: ignore[no-untyped-def]
    # k + 1 columns are as many as there are classes, yet one of them may repeat the label
    teacher, student = _logits(1), _logits(2)
    label = teacher.argsort(dim=1, descending=True)[:, place]
    found = loss(student, encode_topk(teacher, label, topk=CLASSES - 1).targets(), 2.0)
    p, q = (teacher / 2).log_softmax(dim=1), (student / 2).log_softmax(dim=1)
    torch.testing.assert_close(found, (p.exp() * (p - q)).sum(dim=1), rtol=0, atol=1e-6)
