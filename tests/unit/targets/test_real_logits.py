"""The promises on real CIFAR-100 logits: tail error at format precision, and the gradient from a k = K store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.tail import bucket_kl, dense_split, stored
from kdcache.targets.encode import encode_topk
from kdcache.targets.methods import methods
from kdcache.targets.split import split_teacher

LOGITS = Path(__file__).resolve().parents[4] / "shared" / "data" / "logits" / "cifar100_test_resnet56_f32.npz"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not LOGITS.exists(), reason=f"needs the shared real logits, {LOGITS.name}"),
]


def _real() -> tuple[Tensor, Tensor]:
    with np.load(LOGITS) as arrays:
        return torch.from_numpy(arrays["resnet56"]), torch.from_numpy(arrays["labels"].astype(np.int64))


@pytest.mark.parametrize("temperature", [1.0, 1.5, 2.0, 3.0, 4.0, 8.0])
@pytest.mark.parametrize(
    ("numbers", "precision", "bound"), [(3, "exact", 1e-4), (4, "exact", 1e-5), (4, "default", 5e-5)]
)
def test_mean_tail_error_at_k_10(temperature: float, numbers: int, precision: str, bound: float) -> None:
    logits, label = _real()
    live = encode_topk(logits, label, topk=10, tail_numbers=numbers).targets()
    kl = bucket_kl(dense_split(logits, live, temperature), split_teacher(stored(live, precision), temperature))
    assert float(kl.mean()) <= bound


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("half", [False, True])
def test_gradient_with_all_classes_equals_the_live_one(temperature: float, half: bool) -> None:
    logits, label = _real()
    logits, label = logits[:256], label[:256]
    targets = encode_topk(logits, label, topk=100).targets()
    if half:
        targets = replace(stored(targets))
    student = torch.randn(256, 100, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = methods["kd"](student, targets, label, temperature=temperature, alpha=1.0).mean()
    (found,) = torch.autograd.grad(loss, student)
    live = functional.kl_div(
        (student / temperature).log_softmax(1), (logits / temperature).softmax(1), reduction="batchmean"
    )
    (wanted,) = torch.autograd.grad(live * temperature**2, student)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3
