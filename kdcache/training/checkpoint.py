"""Checkpoints of a run: everything the next epoch needs, complete or not there, the previous one kept.

A checkpoint is `state/epoch-00007.safetensors` (tensors) and then `state/epoch-00007.json` (numbers, and the sha256 of
the tensors). It exists when its JSON does; a kill between the two leaves the previous one. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.optim import Optimizer

from kdcache.canonical import canonical_json
from kdcache.errors import CorruptStoreError, ResourceError
from kdcache.models.weights import write_atomically
from kdcache.progress import note

KEPT = 2  # the newest and the one before
_NAME = re.compile(r"epoch-(\d{5})\.json")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State after some epochs.

    Attributes:
        epochs_done: the next epoch to run.
        tensors: flat names to tensors, for example "model/conv1.weight", "optimizer/3/momentum_buffer".
        numbers: JSON beside them (best epoch so far, seconds, optimizer scalars).
    """

    epochs_done: int
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint under `folder` and drop the ones before the previous.

    Raises:
        ResourceError: no space or no permission; earlier checkpoints are untouched.
    """
    name = f"epoch-{checkpoint.epochs_done:05d}"
    # Clones: safetensors refuses tensors that share memory (tied layers).
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in checkpoint.tensors.items()}
    encoded = safetensors.torch.save(tensors)
    document = {
        "epochs_done": checkpoint.epochs_done,
        "tensors_sha256": hashlib.sha256(encoded).hexdigest(),
        "numbers": dict(checkpoint.numbers),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{name}.safetensors", encoded)
        write_atomically(folder / f"{name}.json", canonical_json(document).encode())
        for path in _by_age(folder)[KEPT:]:
            path.unlink()
            path.with_suffix(".safetensors").unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(
            f"{folder / name}: cannot write the checkpoint ({error})",
            hint="free space, then give the same command with --resume",
        ) from error


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, or None when there is none at all.

    A damaged one is passed over, with a note, for the one before.

    Raises:
        CorruptStoreError: there are checkpoints and every one is damaged.
    """
    paths = _by_age(folder)
    for path in paths:
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            note(f"checkpoint {path.stem} is damaged ({error}); trying the one before")
    if paths:
        raise CorruptStoreError(
            f"{folder}: all {len(paths)} checkpoints are damaged", hint="start again without --resume"
        )
    return None


def pack_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as flat tensors and JSON numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            elif value is not None:
                numbers[f"{index}/{name}"] = value
    return tensors, numbers


def unpack_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Put packed state back into a freshly built optimizer of the same parameters."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/", 2)
            state.setdefault(int(index), {})[name] = value
    for key, number in numbers.items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = number
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under "prefix/name"."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that were put under "prefix/", by their own names."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _by_age(folder: Path) -> list[Path]:
    """Checkpoint JSON files, newest first."""
    found = [path for path in folder.glob("epoch-*.json") if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, reverse=True)


def _read(path: Path) -> Checkpoint:
    document = json.loads(path.read_text(encoding="utf-8"))
    encoded = path.with_suffix(".safetensors").read_bytes()
    found = hashlib.sha256(encoded).hexdigest()
    if found != document["tensors_sha256"]:
        raise ValueError(f"sha256 of the tensors is {found[:12]}, expected {document['tensors_sha256'][:12]}")
    tensors: dict[str, torch.Tensor] = safetensors.torch.load(encoded)
    return Checkpoint(epochs_done=int(document["epochs_done"]), tensors=tensors, numbers=document["numbers"])
