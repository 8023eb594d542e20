"""What an epoch's tally adds up, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdcache.errors import NumericError
from kdcache.training.batch import Batch
from kdcache.training.tally import EpochTally, figures


def _batch(rows: int) -> Batch:
    labels = torch.zeros(rows, dtype=torch.int64)
    return Batch(inputs=labels, labels=labels, rows=np.arange(rows), targets=None, global_rows=rows)


def test_finite_losses_of_a_diverging_student_add_up_to_a_finite_mean() -> None:
    tally = EpochTally(torch.device("cpu"), 0, look_every=2)
    loss = torch.full((4,), 3e38)  # each fits float32, their sum does not
    for _ in range(3):
        tally.add(loss, torch.eye(4), _batch(4))
    tally.look()
    found = figures(tally.sums())
    assert found["train_loss"] == pytest.approx(3e38, rel=1e-6)
    assert found["train_accuracy"] == 0.25
    assert found["train_agreement"] is None


def test_an_infinite_loss_names_its_rows() -> None:
    tally = EpochTally(torch.device("cpu"), 2, look_every=1)
    with pytest.raises(NumericError, match=r"epoch 3: .* 1 of 3 rows of a batch: rows 1"):
        tally.add(torch.tensor([0.0, torch.inf, 1.0]), torch.zeros(3, 2), _batch(3))
