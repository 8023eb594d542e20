"""How many threads a process computes with: said in the environment before torch starts, to torch itself after."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def usable_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_each(processes: int) -> int:
    """Threads for each of several processes: the cores shared out, at most OMP_NUM_THREADS where that is set."""
    share = max(1, usable_cores() // processes)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(asked)) if asked.isdecimal() and int(asked) > 0 else share


def thread_variables(threads: int) -> dict[str, str]:
    """Environment variables that a new process takes its number of threads from."""
    return dict.fromkeys(_VARIABLES, str(threads))


@contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """Compute with so many threads in this process; None changes nothing."""
    if threads is None:
        yield
        return
    environment = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.update(thread_variables(threads))
    torch: Any = sys.modules.get("torch")  # not imported here: it takes seconds, and a cell need not use it
    before = torch.get_num_threads() if torch is not None else None
    if torch is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if torch is not None:
            torch.set_num_threads(before)
