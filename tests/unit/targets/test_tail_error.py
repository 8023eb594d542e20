"""The tail's promise where any machine can check it: generated ImageNet-like logits, K = 1000, k = 10."""

from __future__ import annotations

import pytest
import torch

from benchmarks.logits import LogitGenerator
from benchmarks.tail import bucket_kl, dense_split, stored
from kdcache.targets.encode import encode_topk
from kdcache.targets.soft import SoftTargets
from kdcache.targets.split import split_teacher
from kdcache.targets.tail import narrow


@pytest.fixture(scope="module")
def case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = LogitGenerator()
    logits, labels = generator.batch(generator.class_vectors(), 0, 1024)
    return torch.from_numpy(logits), torch.from_numpy(labels)


def _error(logits: torch.Tensor, targets: SoftTargets, temperature: float) -> float:
    return float(bucket_kl(dense_split(logits, targets, temperature), split_teacher(targets, temperature)).mean())


@pytest.mark.parametrize("temperature", [1.0, 1.5, 2.0, 3.0, 4.0, 8.0])
@pytest.mark.parametrize("kept", [10, 30])
def test_mean_error_is_at_most_1e_4_nats(
    case: tuple[torch.Tensor, torch.Tensor], temperature: float, kept: int
) -> None:
    """At default precision, straight from the store and narrowed from a larger k."""
    logits, labels = case
    found = narrow(stored(encode_topk(logits, labels, topk=kept).targets(), "default"), 10)
    assert _error(logits, found, temperature) <= 1e-4


def test_three_numbers_are_ten_times_worse_at_temperature_two(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = case
    three, four = (
        _error(logits, stored(encode_topk(logits, labels, topk=10, tail_numbers=n).targets(), "default"), 2.0)
        for n in (3, 4)
    )
    assert three > 10 * four
