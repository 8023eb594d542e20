"""The triples of `DistillLoader` do not depend on how many workers decode or how many processes share a step."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.integration.distill_setup import ROOT, finish, start
from tests.integration.triples import keep
from tests.small_store import small_source, write_small_store

ROWS, BATCH, EPOCHS = 101, 24, 2  # an odd number of rows, and a last batch that is cut anew
WORKERS = (0, 1, 2, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run's triples: alone-0-W.npy and shared-RANK-W.npy for W workers."""
    path = tmp_path_factory.mktemp("triples")
    write_small_store(path / "store.zarr", small_source(ROWS))
    port = str(29500 + (os.getpid() + 1) % 10_000)
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port")
    script = str(ROOT / "tests" / "integration" / "triples.py")
    sizes = (str(ROWS), str(BATCH), str(EPOCHS), ",".join(map(str, WORKERS)))
    shared = start(path, *torchrun, port, script, str(path), "shared", *sizes)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # four workers on a machine of two cores
            for workers in WORKERS:
                keep(path, "alone", ROWS, BATCH, EPOCHS, workers)
        finish(shared)
    finally:
        shared.kill()
    return path


def _sorted(*parts: np.ndarray) -> np.ndarray:
    """Rows of triples in the order epoch, step, row."""
    whole = np.concatenate(parts)
    return whole[np.lexsort(whole[:, 2::-1].T)]


@pytest.mark.parametrize("workers", WORKERS)
def test_triples_are_the_same_with_any_number_of_workers(folder: Path, workers: int) -> None:
    assert np.array_equal(np.load(folder / f"alone-0-{workers}.npy"), np.load(folder / "alone-0-0.npy"))


@pytest.mark.parametrize("workers", WORKERS)
def test_two_processes_share_the_steps_of_one(folder: Path, workers: int) -> None:
    alone = np.load(folder / "alone-0-0.npy")
    shares = [np.load(folder / f"shared-{rank}-{workers}.npy") for rank in range(2)]
    assert np.array_equal(_sorted(*shares), _sorted(alone))  # epoch, step, row, input, label, targets: to the bit
    for epoch in range(EPOCHS):
        rows = np.concatenate([share[share[:, 0] == epoch, 2] for share in shares])
        assert sorted(rows.tolist()) == list(range(ROWS))  # each row once
    assert not np.array_equal(alone[alone[:, 0] == 0, 2], alone[alone[:, 0] == 1, 2])
