"""Independent work over a store's blocks, shared by processes of this machine or by a Dask cluster; answers in order.

A task is a small order (JSON) for a top-level function that answers in bytes; it reads and writes nothing shared, so
that one whose worker was killed is simply given to another. Work that writes a store's blocks is `filling`'s.
"""

from __future__ import annotations

import base64
import importlib
import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ConfigError, KdcacheError, ResourceError
from kdcache.parallel.dask_tasks import DaskTasks
from kdcache.parallel.threads import thread_variables, threads_each
from kdcache.progress import note, set_quiet
from kdcache.urls import is_url
from kdcache.version import __version__
from kdcache.worker_processes import worker_command, worker_environment
from kdcache.workers.reports import error_of, report_failure

Order = Mapping[str, Any]
Answers = Generator[bytes, None, None]
Work = Callable[[Order], bytes]  # a top-level function: workers import it by name
TRIES = 3  # workers killed one after another by the same task: not bad luck any more
AHEAD = 2  # tasks given out per worker: the next one is there when one is done, and few answers wait for their turn
_DONE, _FAILED = b"+", b"-"


@dataclass(frozen=True, kw_only=True)
class Workforce:
    """Who does the work.

    Attributes:
        workers: processes on this machine; 1 is this process alone.
        dask: address of a Dask scheduler whose workers do it; they must see stores under the same paths. "": none.
    """

    workers: int = 1
    dask: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: fewer than one worker, or workers in two ways.
        """
        if self.workers < 1:
            raise ConfigError(f"workers: expected 1 or more, found {self.workers}")
        if self.dask and self.workers > 1:
            raise ConfigError(
                f"--workers {self.workers} and --dask {self.dask} exclude each other",
                hint="the cluster decides how many workers there are: dask worker SCHEDULER",
            )

    @property
    def alone(self) -> bool:
        """Whether this process does everything."""
        return self.workers == 1 and not self.dask


ALONE = Workforce()


def place_for(location: str | Path, force: Workforce) -> str:
    """A place as workers must be told: those of a cluster run in other folders."""
    return str(location) if is_url(location) or not force.dask else str(Path(location).absolute())


def in_order(force: Workforce, work: Work, orders: Iterable[Order]) -> Answers:
    """What a function answers to each order, in the order of the orders, whoever is done first.

    Args:
        force: who works. Close the iterator to end the workers early.
        work: a top-level function; an error of kdcache that it raises is raised here.
        orders: JSON values; taken as they are needed.

    Raises:
        ResourceError: workers are killed again and again at the same task.
        RemoteError: the Dask scheduler does not answer or was lost. ConfigError: dask is not installed.
    """
    if force.alone:
        return (work(order) for order in orders)
    texts = (_text(work, order) for order in orders)
    return _with_dask(force.dask, texts) if force.dask else _with_processes(force.workers, texts)


def pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays by name as an answer: numpy's npz, which holds no code."""
    target = io.BytesIO()
    np.savez(target, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the arrays for its own options
    return target.getvalue()


def unpack(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of `pack`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def answer(text: str) -> bytes:
    """Do one order: what the function answers after b"+", or what went wrong after b"-". Runs on workers."""
    try:
        value = json.loads(text)
        if value["version"] != __version__:
            raise ConfigError(
                f"a worker runs kdcache {__version__}, the command {value['version']}",
                hint="install the same version everywhere",
            )
        module, _, name = str(value["work"]).partition(":")
        done: bytes = getattr(importlib.import_module(module), name)(value["order"])
    except Exception as error:  # noqa: BLE001 - it goes to who asked, and is raised there
        if not isinstance(error, KdcacheError):
            traceback.print_exception(error, file=sys.stderr)
        return _FAILED + report_failure(error).encode()
    return _DONE + done


def answer_as_text(text: str) -> str:
    """`answer` in base64: tasks of a cluster get and return text."""
    return base64.b64encode(answer(text)).decode()


def _text(work: Work, order: Order) -> str:
    return json.dumps({"version": __version__, "work": f"{work.__module__}:{work.__qualname__}", "order": order})


def _opened(reply: bytes) -> bytes:
    if reply[:1] == _FAILED:
        raise error_of(json.loads(reply[1:]))
    return reply[1:]


def _with_dask(scheduler: str, texts: Iterable[str]) -> Answers:
    with DaskTasks(scheduler) as tasks:
        for reply in tasks.in_order(answer_as_text, texts, ahead=AHEAD):
            yield _opened(base64.b64decode(reply))


def _with_processes(count: int, texts: Iterable[str]) -> Answers:
    with closing(TaskProcesses(count)) as processes, ThreadPoolExecutor(count, "kdcache-tasks") as pool:
        waiting: deque[Future[bytes]] = deque()
        try:
            for text in texts:
                waiting.append(pool.submit(processes.ask, text))
                if len(waiting) >= AHEAD * count:
                    yield _opened(waiting.popleft().result())
            while waiting:
                yield _opened(waiting.popleft().result())
        finally:
            for future in waiting:
                future.cancel()
            processes.stop()  # before the pool waits for its threads


class TaskProcesses:
    """Processes that answer one order after another; started when they are needed, replaced when they are killed.

    Args:
        count: of processes. `ask` may be called from so many threads.
    """

    def __init__(self, count: int) -> None:
        self._environment = worker_environment(thread_variables(threads_each(count)))
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        for _ in range(count):
            self._idle.put(None)

    def ask(self, text: str) -> bytes:
        """What `answer` says to an order, in one of the processes.

        Raises:
            ResourceError: three processes were killed at it.
        """
        for attempt in range(TRIES):
            process = self._idle.get()
            try:
                process = process or self._start()
                reply = _exchange(process, text)
                if reply is None:
                    self._forget(process)
                    process = None
            finally:
                self._idle.put(process)
            if reply is not None:
                return reply
            if self._stopped:
                break
            note("a worker was killed; its block goes to another one" if attempt + 1 < TRIES else "a worker was killed")
        raise ResourceError(
            f"{TRIES} workers were killed one after another at the same blocks; expected them to live",
            hint="out of memory? fewer --workers, then the same command again",
        )

    def process_ids(self) -> tuple[int, ...]:
        """Of the processes that run."""
        with self._lock:
            return tuple(process.pid for process in self._running)

    def stop(self) -> None:
        """End all processes, at once: they hold nothing. Threads in `ask` come back; then `close`."""
        with self._lock:
            self._stopped = True
            running = tuple(self._running)
        for process in running:
            process.kill()
        for process in running:
            process.wait()

    def close(self) -> None:
        """Forget the processes, when no thread is in `ask` any more."""
        self.stop()
        for process in tuple(self._running):
            self._forget(process)

    def _start(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise ResourceError("the workers were stopped")
            process = subprocess.Popen(
                worker_command("kdcache.workers.tasks:main"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=self._environment,
            )
            self._running.add(process)
        return process

    def _forget(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._running.discard(process)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()


def _exchange(process: subprocess.Popen[bytes], text: str) -> bytes | None:
    """The reply to an order; None when the process died."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(text.encode() + b"\n")
        process.stdin.flush()
        length = process.stdout.readline()
        reply = process.stdout.read(int(length)) if length.endswith(b"\n") else b""
    except (OSError, ValueError):  # a pipe that broke, or was closed by `stop`
        return None
    return reply if reply and len(reply) == int(length) else None


def main() -> None:
    """A worker's life: an order a line on stdin, a length and a reply for each on stdout; its parent's end is its own.

    What the work itself prints goes to stderr.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it ends its workers
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    set_quiet(True)
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_take_orders, args=(orders,), name="kdcache-orders", daemon=True).start()
    while True:
        reply = answer(orders.get())
        replies.write(b"%d\n" % len(reply))
        replies.write(reply)
        replies.flush()


def _take_orders(orders: queue.SimpleQueue[str]) -> None:
    waiting = b""
    while part := os.read(0, 65536):
        *whole, waiting = (waiting + part).split(b"\n")
        for line in whole:
            orders.put(line.decode())
    os._exit(1)  # at once: nothing here is worth a cleanup that could hang
