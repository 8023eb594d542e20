"""Which device runs a model, and in which arithmetic. Nothing about models or data."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

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
