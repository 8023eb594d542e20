"""Which device runs a model, and in which arithmetic. Nothing about models or data."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from kdcache.errors import ConfigError
from kdcache.progress import note

_BF16_UNITS = {"amx_bf16", "avx512_bf16", "bf16"}  # x86 names, then Arm's


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
    """The context of a forward pass: "none" is plain float32, "bf16" is autocast."""
    if amp == "none":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def warn_if_bf16_is_slow(amp: str, device: torch.device) -> None:
    """Say so when bf16 was asked for on a processor without bf16 units, where it is emulated.

    Measured on such a machine (Ice Lake, 2 cores): wrn-16-2 trains 10 images/s in bf16 and 30-90 in float32.
    """
    if amp == "bf16" and device.type == "cpu" and not _cpu_features() & _BF16_UNITS:
        note("bf16 is emulated here (no AMX or AVX512-BF16): several times slower than float32; leave --amp out")


def _cpu_features() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set(_BF16_UNITS)  # not Linux: nothing is known, so nothing is said
    return next((set(line.split()) for line in lines if line.startswith(("flags", "Features"))), set(_BF16_UNITS))
