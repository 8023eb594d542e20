"""R: rows are distributions, beta gives the stated confidence, means need no dense teacher."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from kdcache.errors import ConfigError, IncompatibleError
from kdcache.targets import similarity
from kdcache.targets.encode import encode_topk
from kdcache.targets.methods import methods
from kdcache.targets.similarity import MatrixSimilarity, WeightSimilarity, class_means, from_weights, mean_confidence
from tests.contract.method_cases import Columns, batch, columns


def _weight(classes: int = 30) -> torch.Tensor:
    return torch.randn(classes, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("confidence", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_beta_is_solved_for_the_confidence(confidence: float, power: float) -> None:
    found, beta = from_weights(_weight(), power=power, beta=None, confidence=confidence)
    rows = found.rows(torch.arange(30))
    assert rows.diag().mean() == pytest.approx(confidence, abs=1e-3)
    torch.testing.assert_close(rows.sum(1), torch.ones(30))
    again, _ = from_weights(_weight(), power=power, beta=beta, confidence=0.0)
    torch.testing.assert_close(again.rows(torch.arange(30)), rows)


def test_similar_classes_get_more_than_dissimilar_ones() -> None:
    weight = _weight()
    weight[1] = weight[0] + 0.1 * weight[2]
    found, _ = from_weights(weight, power=1.0, beta=None, confidence=0.5)
    row = found.rows(torch.tensor([0]))[0]
    assert row[1] > row[2:].max()


def test_an_unreachable_confidence_is_refused() -> None:
    with pytest.raises(ConfigError, match="no beta"):
        from_weights(torch.ones(5, 3), power=1.0, beta=None, confidence=0.5)


def test_rows_from_weights_equal_rows_of_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, beta = from_weights(_weight(), power=2.0, beta=None, confidence=0.7)
    monkeypatch.setattr(similarity, "LARGEST_MATRIX", 10)
    rows, _ = from_weights(_weight(), power=2.0, beta=beta, confidence=0.7)
    assert isinstance(matrix, MatrixSimilarity)
    assert isinstance(rows, WeightSimilarity)
    label = torch.tensor([3, 3, 29])
    torch.testing.assert_close(rows.rows(label), matrix.rows(label))


def test_class_means_equal_the_dense_means_at_full_k_and_sum_to_one_below() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(200, 10, generator=generator, dtype=torch.float64)
    label = torch.randint(9, (200,), generator=generator)  # class 9 has no rows
    prob = (logits / 2).softmax(1)
    wanted = (
        functional.one_hot(label, 10).double().T @ prob / functional.one_hot(label, 10).sum(0).clamp(min=1)[:, None]
    )
    wanted[9] = 0.1
    for topk in (3, 10):
        parts = tuple(
            encode_topk(logits[i : i + 50], label[i : i + 50], topk=topk).targets() for i in range(0, 200, 50)
        )
        found = class_means(Columns(parts), 2.0).rows(torch.arange(10))
        torch.testing.assert_close(found.sum(1), torch.ones(10))
        if topk == 10:
            torch.testing.assert_close(found, wanted.float(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.diag()[:9], wanted.float().diag()[:9], rtol=0.02, atol=2e-3)


def test_mean_confidence_is_the_mean_of_p_y() -> None:
    data = batch()
    wanted = (data.teacher / 3).softmax(1).gather(1, data.label[:, None]).mean()
    assert mean_confidence(columns(data), 3.0) == pytest.approx(float(wanted))


def test_weights_asked_for_but_not_kept() -> None:
    data = batch()
    bare = columns(data, weights=False)
    with pytest.raises(IncompatibleError, match="class_weight"):
        methods["kd-sim"].prepare(bare, options={"similarity": "weights"})
    assert methods["kd-sim"].prepare(bare).similarity is not None  # falls back to class means


def test_the_solved_numbers_are_reported() -> None:
    facts = methods["kd-sim"].prepare(columns(batch())).facts
    assert facts is not None
    assert set(facts) == {"beta", "confidence"}
    assert 0 < facts["confidence"] <= 0.9
