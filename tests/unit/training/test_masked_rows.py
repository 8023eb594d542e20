"""Rows that do not count: no loss, no gradient, no figures, and the mean is over the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcache.loader import InputReader, open_store
from kdcache.models.preprocess import Preprocessing
from kdcache.specs import PreprocessingSpec
from kdcache.targets.methods import methods
from kdcache.training.batch import Batch, TrainingFeed
from kdcache.training.config import TrainingConfig
from kdcache.training.loop import train
from kdcache.training.objective import Objective
from kdcache.training.optim import learning_rate, set_learning_rate
from kdcache.training.processes import Processes
from kdcache.training.runs import RunFolder
from kdcache.training.setup import evaluation_on
from kdcache.training.tally import EpochTally, figures
from tests.small_store import NUM_CLASSES, small_source, write_small_store

SOURCE = small_source(90)
PLAIN = Preprocessing(PreprocessingSpec())
CPU = Processes(device=torch.device("cpu"))
MASK: NDArray[np.bool_] = np.arange(90) % 3 != 0
NAMES = ("ce", "kd", "dkd", "dist", "mlkd")


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_store(tmp_path_factory.mktemp("masked") / "store.zarr", SOURCE).path


def _feed(path: Path, *, mask: NDArray[np.bool_] | None, rank: int = 0, world_size: int = 1) -> TrainingFeed:
    labels = torch.tensor(SOURCE.labels)
    if mask is not None:
        labels[torch.from_numpy(~mask)] = -100  # what ignored tokens are called elsewhere
    return TrainingFeed(
        InputReader(SOURCE, PLAIN),
        labels,
        batch_size=90,
        seed=3,
        store=open_store(path),
        mask=mask,
        rank=rank,
        world_size=world_size,
    )


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, NUM_CLASSES))


def _gradient(name: str, batch: Batch, *, pieces: int = 1) -> Tensor:
    net = _net()
    objective = Objective(method=methods[name])
    for piece in batch.pieces(pieces):
        loss = objective(net(piece.inputs), piece, 100.0)
        total = loss.sum() if loss.ndim else loss * piece.counted
        (total / piece.divisor).backward()  # type: ignore[no-untyped-call]
    return torch.cat([parameter.grad.reshape(-1) for parameter in net.parameters() if parameter.grad is not None])


def _kept(batch: Batch) -> Batch:
    """The batch a data set without the masked rows would have given."""
    assert batch.mask is not None
    assert batch.targets is not None
    kept = batch.mask
    return replace(
        batch,
        inputs=batch.inputs[kept],
        labels=batch.labels[kept],
        rows=batch.rows[kept.numpy()],
        targets=batch.targets.select(kept),
        mask=None,
        global_rows=int(kept.sum()),
        global_counted=None,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_that_of_the_rows_that_count_alone(store_path: Path, name: str) -> None:
    (batch,) = _feed(store_path, mask=MASK).epoch(0)
    assert batch.divisor == batch.global_counted == MASK.sum()
    torch.testing.assert_close(_gradient(name, batch), _gradient(name, _kept(batch)))


@pytest.mark.parametrize("name", NAMES)
def test_masked_rows_have_no_gradient_whatever_they_hold(store_path: Path, name: str) -> None:
    (batch,) = _feed(store_path, mask=MASK).epoch(0)
    assert batch.mask is not None
    logits = _net()(batch.inputs).detach()
    logits[~batch.mask] = torch.nan
    logits.requires_grad_()
    loss = Objective(method=methods[name])(logits, batch, 0.0)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(loss).all()
    assert not gradient[~batch.mask].any()
    assert gradient[batch.mask].any()


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_a_row_that_counts_changes_nothing(store_path: Path, name: str) -> None:
    (batch,) = _feed(store_path, mask=np.zeros(90, dtype=np.bool_)).epoch(0)
    assert batch.divisor == 1
    assert not _gradient(name, batch).any()


@pytest.mark.parametrize("name", ["ce", "kd"])
def test_pieces_and_processes_share_one_mean(store_path: Path, name: str) -> None:
    (whole,) = _feed(store_path, mask=MASK).epoch(0)
    expected = _gradient(name, whole)
    torch.testing.assert_close(_gradient(name, whole, pieces=4), expected)
    shares = [next(_feed(store_path, mask=MASK, rank=rank, world_size=2).epoch(0)) for rank in (0, 1)]
    assert [share.global_counted for share in shares] == [MASK.sum()] * 2
    torch.testing.assert_close(sum(_gradient(name, share) for share in shares), expected)


@pytest.mark.parametrize("name", ["kd", "dist"])
def test_figures_are_over_the_rows_that_count(store_path: Path, name: str) -> None:
    (batch,) = _feed(store_path, mask=MASK).epoch(0)
    logits = _net()(batch.inputs)
    found = []
    for given, given_logits in ((batch, logits), (_kept(batch), logits[batch.mask])):
        tally = EpochTally(torch.device("cpu"), 0, look_every=1)
        assert tally.add(Objective(method=methods[name])(given_logits, given, 0.0), given_logits, given)
        found.append(figures(tally.sums()))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_training_with_a_mask_is_training_without_the_rows(store_path: Path, tmp_path: Path) -> None:
    """One batch an epoch, so that both runs take the same steps."""
    config = TrainingConfig(epochs=3, batch_size=90, lr=0.05)
    evaluate = evaluation_on(small_source(60, split="test"), PLAIN, CPU)
    objective = Objective(method=methods["kd"])
    masked = _net()
    folder = RunFolder(tmp_path / "masked")
    folder.start({"any": 1}, resume=False)
    result = train(masked, _feed(store_path, mask=MASK), objective, evaluate, config, folder, CPU)

    plain = _net()
    optimizer = torch.optim.SGD(
        [
            {"params": [plain[1].weight], "weight_decay": config.weight_decay},  # type: ignore[index]
            {"params": [plain[1].bias], "weight_decay": 0.0},  # type: ignore[index]
        ],
        lr=0.05,
        momentum=config.momentum,
        nesterov=True,
    )
    losses = []
    for epoch in range(3):
        (batch,) = _feed(store_path, mask=MASK).epoch(epoch)
        set_learning_rate(optimizer, learning_rate(config, epoch, 1))
        loss = objective(plain(_kept(batch).inputs), _kept(batch), float(epoch)).mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for one, two in zip(masked.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert result.train["train_loss"] == pytest.approx(losses[-1], rel=1e-4)
