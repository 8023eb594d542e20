"""From the command line: changed code, policies and seeds are refused, rounding is warned about, drift is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcache.cli.main import run
from tests.integration.distill_setup import write_data

CODE = """
import os
import torch
def make():
    def noisy(image, generator):
        noise = torch.randint(0, 9, image.shape, generator=generator, dtype=torch.uint8)
        return image // 2 + noise + int(os.environ.get("OTHER_MACHINE", "0"))  # the same code on another machine
    return noisy
"""
MIXED = '[[ops]]\nop = "user-transform"\ncode = "mine.py:make"\n[[ops]]\nop = "mixup"\n'


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCACHE_DATA_ROOT", str(tmp_path))
    monkeypatch.setenv("KDCACHE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("OTHER_MACHINE", raising=False)
    write_data(tmp_path, rows=64)
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "mixed.toml").write_text(MIXED)
    return tmp_path


def dump(*more: str) -> int:
    words = ["--dataset", "patterns.toml", "--teacher", "mlp-8", "--init-seed", "0", "--topk", "3", "--out", "s.zarr"]
    return run(["-q", "dump-teacher", *words, "--allow-weak-teacher", *more])


def learn(*more: str) -> int:
    return run(["distill", "--store", "s.zarr", "--student", "mlp-8", "--epochs", "1", *more])


@pytest.mark.parametrize("policy", ["mine.py:make", "mixed.toml"])
def test_a_users_transform_goes_round_and_its_changed_code_is_refused(
    work: Path, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dump("--augment", policy, "--views", "2") == 0
    assert learn("--out", "none") == 3
    assert "which was not given" in capsys.readouterr().err
    assert learn("--augment", policy, "--out", "good") == 0
    assert run(["-q", "verify", "s.zarr", "--views", "--augment", policy]) == 0
    capsys.readouterr()
    (work / "mine.py").write_text(CODE.replace("0, 9", "0, 10"))
    assert learn("--augment", policy, "--out", "bad") == 3
    assert "expected sha256" in capsys.readouterr().err
    assert not (work / "bad").exists()
    assert dump("--augment", policy, "--views", "2") == 3  # nor may other views be added to these
    assert "s.zarr" in capsys.readouterr().err


def test_rounding_is_warned_about_and_drift_refused(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dump("--augment", "mine.py:make") == 0
    asked = ("--augment", "mine.py:make")
    assert learn(*asked, "--out", "same") == 0
    assert "differ" not in capsys.readouterr().err
    monkeypatch.setenv("OTHER_MACHINE", "1")
    assert learn(*asked, "--out", "rounded") == 0
    assert "views differ by rounding from the store's (8 of 8 canaries)" in capsys.readouterr().err
    monkeypatch.setenv("OTHER_MACHINE", "40")
    assert learn(*asked, "--out", "drifted") == 3
    assert "views drifted" in capsys.readouterr().err
    assert not (work / "drifted").exists()
    assert learn(*asked, "--allow-view-drift", "--out", "drifted") == 0


def test_a_changed_policy_or_seed_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = work / "views.toml"
    toml.write_text('[[ops]]\nop = "pad-crop"\npadding = 1\n[[ops]]\nop = "mixup"\n')
    assert dump("--augment", "views.toml", "--view-seed", "3") == 0
    assert learn("--augment", "views.toml", "--out", "good") == 0  # the very file that made them
    capsys.readouterr()
    assert dump("--augment", "views.toml", "--view-seed", "4") == 3
    assert "holds another store" in capsys.readouterr().err
    toml.write_text('[[ops]]\nop = "pad-crop"\npadding = 2\n[[ops]]\nop = "mixup"\n')
    assert learn("--augment", "views.toml", "--out", "bad") == 3
    assert 'op 0: the store has {"op":"pad-crop","padding":1}' in capsys.readouterr().err
    assert dump("--augment", "views.toml", "--view-seed", "3") == 3
    assert learn("--augment", "cifar", "--out", "bad") == 2
    assert not (work / "bad").exists()
