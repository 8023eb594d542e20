"""Cells in worker processes of this machine: given one cell after another, watched, replaced when killed.

Workers are new interpreters, never forks: a fork of a process with threads or a GPU context does not work. Each leads
a process group of its own, so that what it started ends with it, and it ends with its parent.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kdcache.parallel.cell_files import CellFiles
from kdcache.parallel.cell_work import CellOrder, CellReport, Function, run_cell
from kdcache.parallel.threads import thread_variables

LOOK_SECONDS = 0.2
END_SECONDS = 5.0
_PACKAGE_PLACE = str(Path(__file__).resolve().parents[2])


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A cell that is no longer run: its report, or None and what became of its process."""

    name: str
    report: CellReport | None
    reason: str = ""


class InThisProcess:
    """One cell after another, here."""

    def __init__(self) -> None:
        self._reports: list[Ended] = []

    @property
    def room(self) -> int:
        """How many more cells can be started now."""
        return 1 - len(self._reports)

    def start(self, order: CellOrder, function: Function) -> None:
        """Run a cell; `wait` has what came of it."""
        self._reports.append(Ended(name=order.name, report=run_cell(order, function)))

    def wait(self) -> list[Ended]:
        """What ended since the last call."""
        ended, self._reports = self._reports, []
        return ended

    def close(self) -> None:
        """Nothing is left to end."""


class CellProcesses:
    """Worker processes, started as they are needed, at most `count`.

    Args:
        count: of processes.
        threads: each computes with.
    """

    def __init__(self, count: int, *, threads: int) -> None:
        self._count = count
        self._threads = threads
        self._workers: list[_Worker] = []
        self._news = threading.Semaphore(0)

    @property
    def room(self) -> int:
        """How many more cells can be started now."""
        return self._count - sum(worker.cell is not None for worker in self._workers)

    def start(self, order: CellOrder, function: Function) -> None:
        """Give a cell to an idle worker or to a new one; the function is imported there."""
        worker = next((worker for worker in self._workers if worker.cell is None and worker.lives), None)
        if worker is None:
            worker = _Worker(self._threads, self._news.release)
            self._workers.append(worker)
        worker.give(order)

    def wait(self) -> list[Ended]:
        """What ended; after a fifth of a second at the latest."""
        self._news.acquire(timeout=LOOK_SECONDS)
        ended = []
        for worker in tuple(self._workers):
            outcome = worker.outcome()
            if outcome is not None:
                ended.append(outcome)
            # A worker in which a cell failed is not used again: its memory or its GPU may be in any state.
            if not worker.lives or (outcome is not None and outcome.report is not None and outcome.report.error):
                self._workers.remove(worker)
                worker.end()
        return ended

    def process_ids(self) -> dict[int, str | None]:
        """Process -> its cell, None for an idle one."""
        return {worker.process.pid: worker.cell for worker in self._workers}

    def close(self) -> None:
        """End all workers, at once, and wait until they are gone. Safe to call twice."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.end()


class _Worker:
    """One process; a thread reads its reports."""

    def __init__(self, threads: int, on_news: Callable[[], object]) -> None:
        path = os.pathsep.join([_PACKAGE_PLACE, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.cell: str | None = None
        self._log = Path()
        self._reports: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.process = subprocess.Popen(
            # -P: the working folder is not searched for modules, whatever lies in it
            [sys.executable, "-P", "-c", f"from {__name__} import work; work()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, **thread_variables(threads)},
            text=True,
            process_group=0,
        )
        self._reader = threading.Thread(target=self._read, args=(on_news,), name="kdcache-reports", daemon=True)
        self._reader.start()

    @property
    def lives(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def give(self, order: CellOrder) -> None:
        """Order a cell."""
        assert self.process.stdin is not None
        self.cell = order.name
        self._log = CellFiles(Path(order.folder)).log(order.name)
        with suppress(BrokenPipeError):  # it died already: `outcome` says so
            self.process.stdin.write(order.to_text() + "\n")
            self.process.stdin.flush()

    def outcome(self) -> Ended | None:
        """What came of its cell; None while that runs."""
        gone = not self.lives  # asked first: what it said before it went is then read below
        if gone:
            self._reader.join(timeout=END_SECONDS)
        try:
            text = self._reports.get_nowait()
        except queue.Empty:
            text = ""
        name = self.cell
        if name is None or not (gone or text):
            return None
        self.cell = None
        if text:
            return Ended(name=name, report=CellReport.from_text(text))
        code = self.process.returncode
        reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return Ended(name=name, report=None, reason=f"{reason}; what it said: {self._log}")

    def end(self) -> None:
        """Kill the process and all it started, and wait for it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(timeout=END_SECONDS)
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _read(self, on_news: Callable[[], object]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):  # else it was killed while it reported
                self._reports.put(line)
                on_news()
        on_news()


def work() -> None:
    """A worker's life: a cell for each line of stdin, a line of report for each, until stdin ends.

    What the cells print goes to their log files. When the parent is gone, so is this process and all it started.
    """
    report = os.fdopen(os.dup(1), "w")  # not inherited by what cells start
    os.dup2(2, 1)
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_take_orders, args=(orders,), name="kdcache-orders", daemon=True).start()
    while True:
        order = CellOrder.from_text(orders.get())
        sys.path[:] = [*order.path]
        _write_to(CellFiles(Path(order.folder)).log(order.name))
        text = run_cell(order).to_text()
        sys.stdout.flush()
        sys.stderr.flush()
        report.write(text + "\n")
        report.flush()


def _take_orders(orders: queue.SimpleQueue[str]) -> None:
    waiting = b""
    while part := os.read(0, 65536):
        *whole, waiting = (waiting + part).split(b"\n")
        for line in whole:
            orders.put(line.decode())
    # At once: a cell that is not finished is run again, and a cleanup could hang.
    with suppress(OSError):
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _write_to(log: Path) -> None:
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
