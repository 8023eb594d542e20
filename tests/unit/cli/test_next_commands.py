"""What a command prints as next runs as it stands, and defaults suit small data."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from kdcache.cli.main import run


@pytest.fixture
def quarters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An NPZ file of four classes in a folder whose name has a space."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 128)
    images = generator.integers(0, 100, (128, 4, 4, 1)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[label] += 150
    folder = tmp_path / "my data"
    folder.mkdir()
    arrays = {f"{split}_{name}": value for split in ("train", "test") for name, value in
              (("images", images), ("labels", labels))}  # fmt: skip
    np.savez(folder / "quarters.npz", **arrays)
    return folder / "quarters.npz"


def _next(text: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith("next"))
    return shlex.split(line.removeprefix("next"))[1:]


def test_each_next_command_runs_as_printed(quarters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--epochs", "2", "--lr", "0.05", "--batch-size", "32"]
    train = ["train-teacher", "--dataset", "npz", "--data-root", str(quarters), "--model", "mlp-16", *small]
    assert run([*train, "--out", "a teacher"]) == 0
    dump = _next(capsys.readouterr().out)
    assert dump[0] == "dump-teacher"
    assert run([*dump, "--out", "a store.zarr"]) == 0, "four classes: the default k is all of them"
    distill = _next(capsys.readouterr().out)
    assert distill[0] == "distill"
    assert run([*distill, "--method", "ce,kd", *small, "--out", "runs"]) == 0
    said = capsys.readouterr()
    assert "run 1 of 2: ce, seed 0" in said.err
    assert "run 2 of 2: kd, seed 0" in said.err
    assert run([*dump, "--topk", "5", "--out", "other.zarr"]) == 2, "what is asked for by name is refused"


def test_help_shows_no_empty_default(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("dump-teacher", "distill", "train-teacher", "verify"):
        assert run([name, "--help"]) == 0
        assert '""' not in capsys.readouterr().out
