"""Evaluation figures against their definitions, and sums that do not depend on how rows are batched or shared."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

from kdcache.metrics import CALIBRATION_BINS, Evaluation, EvaluationSums, evaluate


def _data(rows: int = 500, classes: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator) * 2
    labels = torch.randint(classes, (rows,), generator=generator)
    return logits, labels, torch.randint(classes, (rows,), generator=generator)


def test_figures_are_their_definitions() -> None:
    logits, labels, teacher = _data()
    sums = EvaluationSums("cpu")
    sums.add(logits, labels, teacher)
    found = sums.result()
    predicted = logits.argmax(dim=1)
    assert found.rows == 500
    assert found.top1 == pytest.approx((predicted == labels).float().mean().item())
    assert found.top5 == pytest.approx(
        np.mean([label in row for row, label in zip(logits.topk(5).indices.tolist(), labels.tolist(), strict=True)])
    )
    assert found.nll == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found.agreement == pytest.approx((predicted == teacher).float().mean().item())
    assert found.ece == pytest.approx(_calibration_error(logits, labels), abs=1e-6)


def _calibration_error(logits: torch.Tensor, labels: torch.Tensor) -> float:
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    error = 0.0
    for number in range(CALIBRATION_BINS):
        low, high = number / CALIBRATION_BINS, (number + 1) / CALIBRATION_BINS
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = confidence[inside].mean() - (predicted == labels)[inside].float().mean()
            error += inside.float().mean().item() * abs(gap.item())
    return error


def test_calibration_bins_are_what_the_calibration_error_sums_up() -> None:
    logits, labels, _ = _data()
    sums = EvaluationSums("cpu")
    sums.add(logits, labels)
    found = sums.result()
    bins = found.calibration
    assert bins is not None
    assert bins.edges == pytest.approx([number / CALIBRATION_BINS for number in range(CALIBRATION_BINS + 1)])
    assert sum(bins.count) == found.rows
    error = 0.0
    for low, high, sure, right, count in zip(
        bins.edges[:-1], bins.edges[1:], bins.confidence, bins.accuracy, bins.count, strict=True
    ):
        assert (sure is None) == (right is None) == (count == 0)
        if sure is not None and right is not None:
            assert low < sure <= high
            error += count / found.rows * abs(sure - right)
    assert found.ece == pytest.approx(error)
    assert found.top1 * found.rows == pytest.approx(
        sum(count * right for count, right in zip(bins.count, bins.accuracy, strict=True) if right is not None)
    )
    assert Evaluation.from_json(json.loads(json.dumps(asdict(found)))) == found
    older = {name: value for name, value in asdict(found).items() if name != "calibration"}
    assert Evaluation.from_json(older).calibration is None  # checkpoints of before bins were kept still load
    assert set(found.scalars()) == {"top1", "top5", "nll", "ece"}


def test_batches_and_shares_add_up_to_the_whole() -> None:
    logits, labels, teacher = _data()
    whole = EvaluationSums("cpu")
    whole.add(logits, labels, teacher)
    shares = [EvaluationSums("cpu") for _ in range(2)]
    for number in range(0, 500, 50):
        part = slice(number, number + 50)
        shares[number // 50 % 2].add(logits[part], labels[part], teacher[part])
    other = shares[1]._sums
    found, expected = shares[0].result(lambda sums: sums + other), whole.result()
    assert found.rows == expected.rows
    assert (found.top1, found.top5, found.agreement) == (expected.top1, expected.top5, expected.agreement)
    assert (found.nll, found.ece) == pytest.approx((expected.nll, expected.ece))


def test_a_sure_and_right_model_is_perfect_and_a_sure_and_wrong_one_is_not_calibrated() -> None:
    labels = torch.arange(6)
    right, wrong = EvaluationSums("cpu"), EvaluationSums("cpu")
    right.add(torch.eye(6) * 50, labels)
    wrong.add(torch.eye(6).roll(1, dims=0) * 50, labels)
    assert (right.result().top1, right.result().ece) == pytest.approx((1.0, 0.0), abs=1e-6)
    assert (wrong.result().top1, wrong.result().ece) == pytest.approx((0.0, 1.0), abs=1e-6)
    assert right.result().agreement is None


def test_fewer_than_five_classes_have_a_top5_of_one() -> None:
    sums = EvaluationSums("cpu")
    sums.add(torch.randn(10, 3), torch.zeros(10, dtype=torch.int64))
    assert sums.result().top5 == 1.0


def test_evaluation_uses_eval_mode_and_restores_the_mode() -> None:
    module = nn.Sequential(nn.Dropout(0.99), nn.Linear(9, 9))
    logits, labels, _ = _data()
    first, second = (evaluate(module, [(logits, labels, None)], device="cpu") for _ in range(2))
    assert first == second
    assert module.training
