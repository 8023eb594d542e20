"""Worker processes on this machine: started, watched, replaced, ended. Nothing about dumps.

Workers are new interpreters, never forks: a fork of a process with threads or a GPU context does not work. A worker
gets its order as one line on stdin, reports one line on its stdout, and dies when stdin ends, that is with its parent.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from kdcache.progress import set_quiet

END_SECONDS = 10.0
_PACKAGE_PLACE = str(Path(__file__).resolve().parents[1])


class ProcessTeam:
    """A process for each order, kept going until `stop`.

    Args:
        main: "module:function" that a worker runs; it calls `work_once`.
        orders: one line of text for each worker.
        environment: variables set for the workers only.
    """

    def __init__(self, main: str, orders: Sequence[str], *, environment: Mapping[str, str] | None = None) -> None:
        self._main = main
        self._orders = tuple(orders)
        self._environment = dict(environment or {})
        self._processes: list[subprocess.Popen[str] | None] = [None] * len(self._orders)

    def refill(self) -> None:
        """Start the workers that do not run."""
        for number, process in enumerate(self._processes):
            if process is None:
                self._processes[number] = self._start(self._orders[number])

    def ended(self) -> list[str | None]:
        """The last line of each worker that ended since the last call; None for one that said nothing."""
        reports: list[str | None] = []
        for number, process in enumerate(self._processes):
            if process is not None and process.poll() is not None:
                self._processes[number] = None
                reports.append(_last_line(process))
        return reports

    def process_ids(self) -> tuple[int, ...]:
        """Of the workers that were started and not yet found ended."""
        return tuple(process.pid for process in self._processes if process is not None)

    def stop(self, *, at_once: bool = False) -> None:
        """End all workers and wait for them; they end at once in any case."""
        running = [process for process in self._processes if process is not None]
        self._processes = [None] * len(self._orders)
        for process in running:
            if process.stdin is not None:
                with suppress(OSError):
                    process.stdin.close()
        for process in running:
            try:
                process.wait(timeout=END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def __enter__(self) -> ProcessTeam:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self, order: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            worker_command(self._main),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=worker_environment(self._environment),
            text=True,
        )
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it died already: `ended` says so
            process.stdin.write(order + "\n")
            process.stdin.flush()
        return process


def worker_command(main: str) -> list[str]:
    """The words that run "module:function" in a new interpreter."""
    module, function = main.split(":")
    # -P: the working folder is not searched for modules, whatever lies in it
    return [sys.executable, "-P", "-c", f"from {module} import {function}; {function}()"]


def worker_environment(more: Mapping[str, str]) -> dict[str, str]:
    """The environment of this process for a worker, which finds this kdcache; with `more` variables."""
    path = os.pathsep.join([_PACKAGE_PLACE, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **more}


def _last_line(process: subprocess.Popen[str]) -> str | None:
    assert process.stdout is not None
    assert process.stdin is not None
    lines = process.stdout.read().splitlines()
    process.stdout.close()
    with suppress(OSError):
        process.stdin.close()
    return lines[-1] if lines and process.returncode == 0 else None


def work_once(report_of: Callable[[str], str]) -> NoReturn:
    """A worker process from its order to its report and its end.

    Args:
        report_of: does the order and says what became of it; never raises.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it ends its workers
    text, report = take_order()
    set_quiet(True)
    os.write(report, (report_of(text) + "\n").encode())
    os.close(report)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # decoding processes and libraries' threads are not waited for


def take_order() -> tuple[str, int]:
    """A worker's beginning: its order, and the file descriptor its report goes to.

    From here on what the worker's own code prints goes to stderr, and the process ends when its parent does.
    """
    report = os.dup(1)
    os.dup2(2, 1)
    order = b""
    while not order.endswith(b"\n"):
        part = os.read(0, 65536)
        if not part:
            os._exit(1)
        order += part
    threading.Thread(target=_die_with_parent, name="kdcache-parent", daemon=True).start()
    return order.decode().strip(), report


def _die_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)  # at once: a block that is not committed is asked again, and a cleanup could hang
