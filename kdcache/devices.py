"""Which device runs a model, in which arithmetic; copies to and from it that nobody waits for.

Nothing about models or data. On a CPU every copy here is the tensor itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from kdcache.errors import ConfigError
from kdcache.progress import note

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_UNITS = {  # flags in /proc/cpuinfo: x86 names, then Arm's
    "bf16": {"amx_bf16", "avx512_bf16", "bf16"},
    "fp16": {"amx_fp16", "avx512_fp16", "fphp", "asimdhp"},
}


def choose_device(name: str, *, local_rank: int = 0) -> torch.device:
    """A device by name; "auto" is this process's GPU where there is one, else the CPU.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        name = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"device {name!r} cannot be used here: {first}", hint="--device cpu or --device auto"
        ) from error
    return device


def spread_over_devices(name: str, count: int) -> tuple[str, ...]:
    """Devices for `count` processes: "auto" deals out the GPUs in turn where there are any; else all get `name`."""
    gpus = torch.cuda.device_count() if name == "auto" else 0
    return tuple(f"cuda:{number % gpus}" if gpus else name for number in range(count))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; from pinned memory to a GPU, so that the host does not wait for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class HostCopy:
    """Tensors on their way to the host: the copies start now, `wait` says when they are there.

    Args:
        tensors: by name, all on one device. From a GPU they go to pinned memory on the stream that computes them, so
            the thread that asks does not wait; another thread may.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._tensors = dict(tensors)
        if any(tensor.device.type == "cuda" for tensor in tensors.values()):
            self._tensors = {name: _start_copy(tensor) for name, tensor in tensors.items()}
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> dict[str, Tensor]:
        """The tensors on the CPU, whole."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return {name: tensor.cpu() for name, tensor in self._tensors.items()}


def _start_copy(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def autocast(amp: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The context of a forward pass: "none" is plain float32, "bf16" and "fp16" are autocast."""
    if amp == "none":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST[amp])


def gradient_scaler(amp: str, device: torch.device) -> torch.amp.GradScaler | None:
    """What keeps fp16 gradients above its smallest number (6e-8); None for "none" and "bf16", which need none.

    Raises:
        ConfigError: torch scales no gradients on this kind of device.
    """
    if amp != "fp16":
        return None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"amp 'fp16' needs a CUDA device or the CPU, found {device.type}", hint="--amp none")
    return torch.amp.GradScaler(device.type)


def warn_if_amp_is_slow(amp: str, device: torch.device) -> None:
    """Say so when bf16 or fp16 was asked for on a processor without units for it, where it is emulated.

    Measured on such a machine (Ice Lake, 2 cores): wrn-16-2 trains 10 images/s in bf16 and 30-90 in float32.
    """
    if amp in _UNITS and device.type == "cpu" and not _cpu_features() & _UNITS[amp]:
        what = {"bf16": "no AMX or AVX512-BF16", "fp16": "no AVX512-FP16"}[amp]
        note(f"{amp} is emulated here ({what}): several times slower than float32; leave --amp out")


def _cpu_features() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    every = set().union(*_UNITS.values())  # not Linux: nothing is known, so nothing is said
    return next((set(line.split()) for line in lines if line.startswith(("flags", "Features"))), every)
