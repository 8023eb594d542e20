"""Checkpoints: complete or not there, the previous kept, damage passed over aloud."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kdcache.errors import CorruptStoreError
from kdcache.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
    with_prefix,
    without_prefix,
)
from kdcache.training.config import TrainingConfig
from kdcache.training.optim import build_optimizer


def _checkpoint(epoch: int) -> Checkpoint:
    return Checkpoint(epochs_done=epoch, tensors={"model/w": torch.full((3,), float(epoch))}, numbers={"best": 0.1})


def test_the_newest_is_read_and_only_the_one_before_is_kept(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    for epoch in range(1, 5):
        save_checkpoint(tmp_path, _checkpoint(epoch))
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.epochs_done == 4
    assert found.numbers == {"best": 0.1}
    assert found.tensors["model/w"].tolist() == [4.0] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"epoch-{epoch:05d}.{kind}" for epoch in (3, 4) for kind in ("json", "safetensors")
    ]


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "json"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for epoch in (1, 2):
        save_checkpoint(tmp_path, _checkpoint(epoch))
    tensors = tmp_path / "epoch-00002.safetensors"
    content = tensors.read_bytes()
    if damage == "flip":
        tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        tensors.write_bytes(content[:-4])
    elif damage == "gone":
        tensors.unlink()
    else:
        (tmp_path / "epoch-00002.json").write_text("{")
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.epochs_done == 1
    assert "epoch-00002 is damaged" in capsys.readouterr().err


def test_tensors_without_their_json_do_not_count(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, _checkpoint(1))
    save_checkpoint(tmp_path, _checkpoint(2))
    (tmp_path / "epoch-00002.json").unlink()  # killed between the two files
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.epochs_done == 1


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, _checkpoint(1))
    (tmp_path / "epoch-00001.safetensors").write_bytes(b"")
    with pytest.raises(CorruptStoreError, match="damaged"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_optimizer_survives_the_trip_to_the_last_bit(tmp_path: Path, optimizer: str) -> None:
    def steps(model: nn.Module, chosen: torch.optim.Optimizer, count: int) -> None:
        for number in range(count):
            model(torch.linspace(-1, 1, 8).reshape(2, 4) * (number + 1)).square().sum().backward()
            chosen.step()
            chosen.zero_grad()

    torch.manual_seed(0)
    config = TrainingConfig(optimizer=optimizer, lr=0.01)  # type: ignore[arg-type]
    model = nn.Linear(4, 3)
    chosen = build_optimizer(model, config)
    steps(model, chosen, 3)
    tensors, numbers = pack_optimizer(chosen)
    save_checkpoint(
        tmp_path,
        Checkpoint(
            epochs_done=1,
            tensors={**with_prefix("model", model.state_dict()), **tensors},
            numbers={"optimizer": numbers},
        ),
    )
    found = load_checkpoint(tmp_path)
    assert found is not None
    other = nn.Linear(4, 3)
    other.load_state_dict(without_prefix("model", found.tensors))
    again = build_optimizer(other, config)
    unpack_optimizer(again, found.tensors, found.numbers["optimizer"])
    for pair in ((model, chosen), (other, again)):
        steps(*pair, 3)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
