"""`encode_topk`: what it keeps is what dense log-probabilities say, and bad input is named."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.errors import ConfigError, IncompatibleError, NumericError
from kdcache.targets.encode import encode_topk
from kdcache.targets.soft import LARGEST_STORED


def _logits(rows: int = 6, classes: int = 20, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), topk=st.integers(1, 20), numbers=st.sampled_from([3, 4]))
def test_head_and_tail_equal_the_dense_statistics(seed: int, topk: int, numbers: int) -> None:
    logits = _logits(seed=seed)
    label = torch.randint(20, (6,), generator=torch.Generator().manual_seed(seed))
    found = encode_topk(logits, label, topk=topk, tail_numbers=numbers)
    log_prob = torch.log_softmax(logits, 1)
    for row in range(6):
        order = log_prob[row].argsort(descending=True)
        assert found.index[row].tolist() == order[:topk].tolist()
        torch.testing.assert_close(found.log_prob[row], log_prob[row, order[:topk]])
        rest = [c for c in range(20) if c not in order[:topk].tolist() and c != int(label[row])]
        values = log_prob[row, rest]
        assert found.tail.shape == (6, numbers)
        if not rest:
            assert found.tail[row].tolist() == [-torch.inf, 0.0, 0.0, -torch.inf][:numbers]
            continue
        wanted = [values.logsumexp(0), values.mean(), values.var(unbiased=False)]
        if numbers == 4:
            wanted.append((values / 2).logsumexp(0))
        torch.testing.assert_close(found.tail[row], torch.stack(wanted))
    torch.testing.assert_close(found.label_log_prob, log_prob.gather(1, label[:, None])[:, 0])
    assert found.correct.tolist() == (log_prob.argmax(1) == label).tolist()


def test_half_precision_logits_are_encoded_in_float32() -> None:
    found = encode_topk(_logits().half(), torch.zeros(6, dtype=torch.int64), topk=3)
    assert found.log_prob.dtype == found.tail.dtype == torch.float32


def test_columns_have_the_names_of_the_store() -> None:
    columns = encode_topk(_logits(), torch.zeros(6, dtype=torch.int32), topk=3).columns()
    assert set(columns) == {"topk_index", "topk_log_prob", "tail", "label", "label_log_prob"}
    assert all(column.device.type == "cpu" and len(column) == 6 for column in columns.values())


def test_extreme_logits_fit_float16() -> None:
    logits = torch.tensor([[1e6, 0.0, -1e6, -2e6], [0.0, 0.0, 0.0, -1e5]])
    found = encode_topk(logits, torch.tensor([1, 0]), topk=1, tail_numbers=4)
    assert found.tail.abs().max() <= LARGEST_STORED
    assert torch.isfinite(found.tail.half()).all()
    assert torch.isfinite(found.label_log_prob.half()).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_logit_that_is_no_number_names_its_row(bad: float) -> None:
    logits = _logits()
    logits[4, 2] = bad
    with pytest.raises(NumericError, match=r"1 row\(s\): 104"):
        encode_topk(logits, torch.zeros(6, dtype=torch.int64), topk=3, first_row=100)


@pytest.mark.parametrize("label", [-1, 20])
def test_a_label_outside_the_classes_is_refused(label: int) -> None:
    with pytest.raises(IncompatibleError, match="0 to 19"):
        encode_topk(_logits(), torch.tensor([0, 1, 2, label, 4, 5]), topk=3)


@pytest.mark.parametrize(("topk", "numbers"), [(0, 3), (21, 3), (5, 2)])
def test_k_and_tail_numbers_are_checked(topk: int, numbers: int) -> None:
    with pytest.raises(ConfigError):
        encode_topk(_logits(), torch.zeros(6, dtype=torch.int64), topk=topk, tail_numbers=numbers)
