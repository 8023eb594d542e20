"""The examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from kdcache.datasets.cards import open_dataset
from tests.integration.distill_setup import ROOT, finish, start
from tests.small_store import write_small_store


def test_own_loop_learns_from_a_store(tmp_path: Path) -> None:
    source = open_dataset("digit-pairs", split="train")
    (tmp_path / "kdcache-store").mkdir()
    truth = torch.nn.functional.one_hot(torch.tensor(source.labels), 100) * 8.0
    write_small_store(tmp_path / "kdcache-store" / "s.zarr", source, logits=truth, topk=10)
    out = finish(start(tmp_path, str(ROOT / "examples" / "own_loop.py")))
    losses = [float(value) for value in re.findall(r"loss of the last batch ([\d.]+)", out)]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
