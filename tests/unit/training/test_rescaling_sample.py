"""What a run logs of its gradient rescaling: the closed form of the rows it looked at, at the steps it promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from kdcache.loader import InputReader, open_store
from kdcache.models.preprocess import Preprocessing
from kdcache.specs import PreprocessingSpec
from kdcache.targets.methods import methods
from kdcache.targets.rescaling import diagnostics
from kdcache.training.batch import TrainingFeed
from kdcache.training.config import TrainingConfig
from kdcache.training.loop import train
from kdcache.training.objective import Objective
from kdcache.training.processes import Processes
from kdcache.training.rescaling_sample import RescalingSample
from kdcache.training.runs import RunFolder
from kdcache.training.setup import evaluation_on
from tests.small_store import NUM_CLASSES, small_source, write_small_store

SOURCE = small_source(90)
PLAIN = Preprocessing(PreprocessingSpec())
CPU = Processes(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_store(tmp_path_factory.mktemp("omega") / "store.zarr", SOURCE).path


def _feed(path: Path | None, batch_size: int = 90) -> TrainingFeed:
    store = None if path is None else open_store(path)
    labels = torch.tensor(SOURCE.labels)
    return TrainingFeed(InputReader(SOURCE, PLAIN), labels, batch_size=batch_size, seed=3, store=store)


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, NUM_CLASSES))


def _metrics(folder: Path, feed: TrainingFeed, name: str, **changes: object) -> list[dict[str, float]]:
    config = TrainingConfig(**{"epochs": 2, "batch_size": 90, "lr": 0.05, **changes})  # type: ignore[arg-type]
    run = RunFolder(folder)
    run.start({"any": 1}, resume=False)
    evaluate = evaluation_on(small_source(60, split="test"), PLAIN, CPU)
    result = train(_net(), feed, Objective(method=methods[name]), evaluate, config, run, CPU)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(lines[-1][key] == value for key, value in result.train.items() if value is not None)
    return lines


@pytest.mark.parametrize(("accumulate", "amp"), [(1, "none"), (3, "none"), (2, "fp16")])
def test_a_run_logs_what_the_closed_form_says_of_its_first_step(
    store_path: Path, tmp_path: Path, accumulate: int, amp: str
) -> None:
    """One step an epoch: the first epoch's numbers are those of the initial weights on all rows."""
    first = _metrics(tmp_path / "run", _feed(store_path), "kd", accumulate=accumulate, amp=amp)[0]
    (batch,) = _feed(store_path).epoch(0)
    assert batch.targets is not None
    expected = diagnostics(_net()(batch.inputs), batch.targets, temperature=4.0, alpha=0.9)
    for name in set(expected) - {"rows", "teacher_agreement"}:
        near = {"rel": 1e-3, "abs": 1e-4} if amp == "none" else {"rel": 0.02, "abs": 0.02}  # logits rounded to fp16
        assert first[name] == pytest.approx(expected[name], **near), name
    assert first["train_agreement"] == pytest.approx(expected["teacher_agreement"])


@pytest.mark.parametrize("name", ["kd-topk", "dkd", "nkd", "lskd", "wttm", "dist", "mlkd"])
def test_every_method_that_reads_a_store_has_it_in_every_epoch(store_path: Path, tmp_path: Path, name: str) -> None:
    for line in _metrics(tmp_path / "run", _feed(store_path, 32), name):
        assert {"omega_mean", "omega_p50", "omega_confidence_correlation", "train_agreement"} <= set(line)


def test_a_run_without_a_teacher_has_none(tmp_path: Path) -> None:
    assert not any("omega_mean" in line for line in _metrics(tmp_path / "run", _feed(None), "ce"))


@pytest.mark.parametrize(("steps", "looks"), [(1, 1), (5, 1), (16, 1), (96, 3), (256, 8), (1000, 8), (100_000, 8)])
def test_it_looks_at_a_few_steps_spread_over_the_epoch(store_path: Path, steps: int, looks: int) -> None:
    sample = RescalingSample(steps, 4.0)
    (batch,) = _feed(store_path).epoch(0)
    chosen = [step for step in range(steps) if sample.wants(step, batch)]
    assert abs(len(chosen) - looks) <= 1
    assert len(chosen) >= 1
    assert sum(chosen) / len(chosen) == pytest.approx((steps - 1) / 2, abs=max(2, steps / 6))
