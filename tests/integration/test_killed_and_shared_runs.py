"""Real processes: a run killed by the system and resumed, and one run shared by two processes under torchrun."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from kdcache.dump import DumpConfig, dump_teacher
from tests.integration.distill_setup import finish, start, write_data_and_store

DISTILL = ("-m", "kdcache", "distill", "--seed", "3", "--json", "-q")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port")
LINEAR = (
    *("--store", "store.zarr", "--student", "student.py:factory", "--epochs", "3", "--augment", "cifar"),
    *("--batch-size", "70"),  # 300 rows end in two short steps of 45 and 45
    *("--accumulate", "2", "--clip-grad", "0.5", "--ema", "0.9"),
)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Data, card, student and store in an empty folder."""
    write_data_and_store(tmp_path)
    return tmp_path


def _epochs_logged(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def test_a_run_killed_by_the_system_resumes_to_the_same_bits(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDCACHE_DATA_ROOT", str(work))
    monkeypatch.setenv("KDCACHE_CACHE_DIR", str(work / "cache"))
    views = DumpConfig(
        dataset=str(work / "patterns.toml"),
        teacher="mlp-8",
        init_seed=0,
        topk=3,
        views=3,
        augment="cifar",
        out=str(work / "views.zarr"),
        allow_weak_teacher=True,
    )
    dump_teacher(views)
    options = (
        *("--store", "views.zarr", "--view-order", "random", "--epochs", "18", "--ema", "0.9"),
        *("--accumulate", "2", "--clip-grad", "1", "--warmup-epochs", "4.5", "--early-stop", "17"),
    )
    straight = start(work, *DISTILL, *options, "--out", "straight")
    killed = start(work, *DISTILL, *options, "--out", "killed")
    while killed.poll() is None and _epochs_logged(work / "killed") < 3:
        time.sleep(0.002)
    assert killed.poll() is None, killed.communicate()[1]
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    done = _epochs_logged(work / "killed")
    assert 3 <= done < 18
    assert not (work / "killed" / "result.json").exists()
    resumed = json.loads(finish(start(work, *DISTILL, *options, "--out", "killed", "--resume")))
    expected = json.loads(finish(straight))
    for name in ("last.safetensors", "best.safetensors"):
        assert (work / "killed" / name).read_bytes() == (work / "straight" / name).read_bytes()
    for name in ("accuracy", "accuracy_best", "best_epoch", "nll", "ece", "train_loss", "steps"):
        assert resumed[name] == expected[name], name
    assert _epochs_logged(work / "killed") == expected["epochs_run"]


def test_two_processes_take_the_steps_of_one(work: Path) -> None:
    port = str(29500 + os.getpid() % 10_000)
    shared = start(work, *TORCHRUN, port, *DISTILL, *LINEAR, "--out", "two")
    alone = json.loads(finish(start(work, *DISTILL, *LINEAR, "--out", "one")))
    out = finish(shared)
    result = json.loads(out)  # one document: only the first process answers
    assert result["processes"] == 2
    assert result["test_rows"] == alone["test_rows"] == 201  # counted once, though 201 is odd
    assert result["steps"] == alone["steps"]
    assert result["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-5)
    assert result["train_agreement"] == pytest.approx(alone["train_agreement"], abs=1.1 / 300)
    one, two = (safetensors.torch.load_file(work / name / "last.safetensors") for name in ("one", "two"))
    for name in one:  # the same rows in every step; floats are added up in another order
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-4)
