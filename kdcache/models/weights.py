"""Weights at rest: read safetensors or plain torch files, digest them, load them strictly, save them atomically.

A torch file is read with `weights_only=True`: nothing in it is executed. No architecture knowledge here, and no
downloads; `registry.resolve_weights` turns the name of published weights into a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import struct
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from kdcache.canonical import canonical_json
from kdcache.errors import IncompatibleError, NotFoundError, ResourceError

WRAPPER_KEYS = ("state_dict", "model_state_dict", "model", "net")
TRAINING_KEY = "training"
# What torch's unpickler raises on bytes that are no pickle, or a pickle that asks for code.
_TORCH_FAILURES = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    OSError,
    struct.error,
)


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """What a weights file is.

    Attributes:
        path: the file.
        sha256: hex sha256 of the file's bytes.
        state_digest: hex digest of names, dtypes, shapes and numbers; equal for the same weights in another container.
        training: provenance the file carries (recipe, seed, accuracy ...), or empty.
    """

    path: Path
    sha256: str
    state_digest: str
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """The tensors of a weights file on the CPU, with what the file says about itself."""

    state: Mapping[str, Tensor]
    info: WeightsInfo


def read_weights(file: str | Path) -> WeightsFile:
    """Read a state dict without building a model.

    Accepts safetensors, and torch files that hold a state dict, bare or under one of the keys `state_dict`,
    `model_state_dict`, `model`, `net`. A common `module.` prefix (data-parallel training) is dropped.

    Raises:
        NotFoundError: no such file.
        IncompatibleError: the file is not weights, or needs code to be run.
    """
    path = Path(file)
    if not path.is_file():
        raise NotFoundError(f"weights {path}: no such file", hint="give a .safetensors or torch file with --weights")
    if _is_safetensors(path):
        state, training = _read_safetensors(path)
    else:
        state, training = _read_torch(path), {}
    state = _without_module_prefix(state)
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    info = WeightsInfo(path=path, sha256=sha256, state_digest=state_digest(state), training=training)
    return WeightsFile(state=state, info=info)


def weights_state_digest(file: str | Path) -> str:
    """The state digest of a weights file; no model is built. Raises as `read_weights`."""
    return read_weights(file).info.state_digest


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Hex sha256 over every tensor in order of name: name, dtype, shape, little-endian bytes."""
    return digest_tensors((name, state[name]) for name in sorted(state))


def digest_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """`state_digest` of tensors that come one at a time, in order of name."""
    digest = hashlib.sha256()
    for name, value in tensors:
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1e".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def load_weights(module: nn.Module, file: str | Path) -> WeightsInfo:
    """Copy a file's weights into a module; every tensor must fit.

    Raises:
        NotFoundError, IncompatibleError: as `read_weights`; also when names or shapes differ, naming which.
    """
    weights = read_weights(file)
    load_state(module, weights.state, subject=f"weights {file}")
    return weights.info


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, subject: str) -> None:
    """Copy a state dict into a module, or say precisely what does not fit. `subject` begins the message.

    Raises:
        IncompatibleError: missing or unexpected names, or other shapes.
    """
    expected = module.state_dict()
    # BatchNorm's step counter appeared in PyTorch 0.4.1; it changes no output, so old files without it still load.
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    reshaped = [
        f"{name} {tuple(state[name].shape)} in the file, {tuple(tensor.shape)} in the model"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if missing or unexpected or reshaped:
        parts = [_listing("missing", missing), _listing("unexpected", unexpected), _listing("other shape", reshaped)]
        raise IncompatibleError(
            f"{subject} do not fit {type(module).__name__}: " + "; ".join(part for part in parts if part),
            hint="check the model's name and the number of classes against what the weights were trained for",
        )
    module.load_state_dict(dict(state), strict=False)


def save_weights(module: nn.Module, path: str | Path, metadata: Mapping[str, Any]) -> WeightsInfo:
    """Write a module's state as safetensors: complete under its final name, or not there at all.

    Args:
        module: its `state_dict` is saved as it is, on any device.
        path: the file; its folder must exist.
        metadata: training provenance, any JSON; read back as `WeightsInfo.training`.

    Raises:
        ResourceError: the disk is full or not writable.
    """
    target = Path(path)
    # Clones: safetensors refuses tensors that share memory (tied layers).
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    # One metadata key only: safetensors writes several in the order of a salted hash, and equal runs would differ.
    encoded = safetensors.torch.save(state, {TRAINING_KEY: canonical_json(dict(metadata))})
    try:
        write_atomically(target, encoded)
    except OSError as error:
        raise ResourceError(
            f"{target}: cannot write weights ({error})", hint="free space or choose another --out"
        ) from error
    return read_weights(target).info


def restate_weights(path: Path, metadata: Mapping[str, Any]) -> None:
    """Give a file of `save_weights` another training provenance; the tensors stay. Raises ResourceError."""
    state = safetensors.torch.load(path.read_bytes())
    encoded = safetensors.torch.save(state, {TRAINING_KEY: canonical_json(dict(metadata))})
    try:
        write_atomically(path, encoded)
    except OSError as error:
        raise ResourceError(f"{path}: cannot write weights ({error})", hint="free space, then --resume") from error


def write_atomically(target: Path, content: bytes) -> None:
    """Write bytes under a temporary name beside the target, flush them to disk, then rename.

    Raises:
        OSError: no space, no permission or no such folder; the target is unchanged.
    """
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes 0600; weights are shared within a team
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename is None:  # a full disk: write() knows no name
            error.filename = str(target)
        raise


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as stream:
        start = stream.read(9)
    return path.suffix == ".safetensors" or (len(start) == 9 and start[8:9] == b"{" and start[:4] != b"PK\x03\x04")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
    except safetensors.SafetensorError as error:
        raise IncompatibleError(
            f"weights {path}: not a safetensors file ({error})",
            hint="check the file, or save the weights again: safetensors.torch.save_file(model.state_dict(), FILE)",
        ) from error
    try:
        training = json.loads(metadata.get(TRAINING_KEY, "{}"))
    except ValueError:
        training = {}
    return state, training if isinstance(training, dict) else {}


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on pickle protocols; what matters is whether it loads
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _TORCH_FAILURES as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise IncompatibleError(
            f"weights {path}: not a safetensors file nor plain torch weights ({first:.200})",
            hint="save the model's state_dict(): torch.save(model.state_dict(), FILE) or safetensors",
        ) from error
    for key in WRAPPER_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        found = (
            f"keys {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else type(content).__name__
        )
        raise IncompatibleError(
            f"weights {path}: expected a state dict (names to tensors), bare or under {WRAPPER_KEYS}; found {found}",
            hint="save the model's state_dict(): torch.save(model.state_dict(), FILE)",
        )
    return {str(name): tensor for name, tensor in content.items()}


def _without_module_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if state and all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return dict(state)


def _listing(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{what}: {', '.join(names[:4])}{more}"
