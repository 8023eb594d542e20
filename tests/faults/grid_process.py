"""Cells to be run and killed, and a grid of them: `python -m tests.faults.grid_process FOLDER [WORKERS] [DASK]`.

Every run of a cell leaves a line with its name and process in FOLDER/trace. No torch, so that many can be started.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcache.errors import NotFoundError
from kdcache.parallel import Cell, run_cells, run_recipe

Arguments = Mapping[str, Any]


def square(arguments: Arguments) -> Mapping[str, Any]:
    """The square of `x`, once the file `gate` is there."""
    _leave_trace(arguments)
    gate = arguments.get("gate")
    while gate and not Path(gate).exists():
        time.sleep(0.02)
    return {"square": arguments["x"] ** 2, "process": os.getpid()}


def add_up(arguments: Arguments) -> Mapping[str, Any]:
    """The sum of what other cells left behind."""
    _leave_trace(arguments)
    return {"lines": len(traces(Path(arguments["folder"])))}


def fail(arguments: Arguments) -> Mapping[str, Any]:
    """Raise an error of the cell's own."""
    _leave_trace(arguments)
    raise ValueError(f"no luck with {arguments['x']}")


def fail_with_hint(arguments: Arguments) -> Mapping[str, Any]:
    """Raise one of kdcache's errors."""
    raise NotFoundError("no data", hint="get some")


def leave(arguments: Arguments) -> Mapping[str, Any]:
    """What a cell must not do."""
    sys.exit(3)


def die(arguments: Arguments) -> Mapping[str, Any]:
    """Be killed, every time or only where there is no `survivor` yet; `saying` these words of a report."""
    _leave_trace(arguments)
    survivor = arguments.get("survivor")
    if survivor is None or not Path(survivor).exists():
        if survivor is not None:
            Path(survivor).touch()
        if "saying" in arguments:
            os.write(_report_pipe(), arguments["saying"].encode())
        os.kill(os.getpid(), signal.SIGKILL)
    return {"survived": True}


def _report_pipe() -> int:
    """The descriptor a worker process reports on: its only pipe beside stdin."""
    pipes = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and stat.S_ISFIFO(_mode(fd))]
    assert len(pipes) == 1
    return pipes[0]


def _mode(descriptor: int) -> int:
    try:
        return os.fstat(descriptor).st_mode
    except OSError:  # that of the listing itself
        return 0


def not_json(arguments: Arguments) -> Mapping[str, Any]:
    """A result no file can hold."""
    return {"loss": float("nan")}


def environment(arguments: Arguments) -> Mapping[str, Any]:
    """How many threads a cell is told to use; it also says something."""
    print("said by", arguments["x"])
    return {"threads": os.environ.get("OMP_NUM_THREADS")}


def start_a_child(arguments: Arguments) -> Mapping[str, Any]:
    """Start a process that outlives everything, write its number, and wait."""
    import subprocess

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(arguments["child"]).write_text(str(child.pid))
    child.wait()
    return {}


def _leave_trace(arguments: Arguments) -> None:
    with (Path(arguments["folder"]) / "trace").open("a") as file:
        file.write(f"{arguments['x']} {os.getpid()}\n")


def traces(folder: Path) -> list[tuple[str, int]]:
    """(x, process) of every run of a cell, oldest first."""
    path = folder / "trace"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(name, int(process)) for name, process in (line.rsplit(" ", 1) for line in lines)]


def cell(folder: Path, name: str, run: Any = square, *, needs: tuple[str, ...] = (), **more: Any) -> Cell:
    """A cell of one of the functions above."""
    return Cell(name=name, run=run, arguments={"x": name, "folder": str(folder), **more}, needs=needs)


def gated_grid(folder: Path) -> list[Cell]:
    """Two cells, four that wait for a gate, and one that needs them all."""
    free = [cell(folder, f"free-{x}", x=x) for x in range(2)]
    gated = [cell(folder, f"gated-{x}", x=x, gate=str(folder / "gate")) for x in range(2, 6)]
    return [*free, *gated, cell(folder, "sum", add_up, needs=tuple(one.name for one in (*free, *gated)))]


def main(folder: str, workers: str = "1", dask: str = "") -> int:
    """Run the grid of gates."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to Ctrl-C
    result = run_cells(gated_grid(Path(folder)), folder=Path(folder), workers=int(workers), dask=dask)
    print(result.summary())
    return result.exit_code


if __name__ == "__main__":
    run_recipe(lambda: main(*sys.argv[1:]))
