"""A connection to a Dask cluster. The only module that imports dask (extra `dask`).

Tasks get and return text; what they do is the caller's function, which must be importable on the workers.
"""

from __future__ import annotations

import logging
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any

from kdcache.errors import ConfigError, RemoteError
from kdcache.progress import note

CONNECT_SECONDS = 10
ANSWER_SECONDS = 20  # for one question
LOST_SECONDS = 120  # without any answer: a busy scheduler is slow, and a cable that was pulled gives no error
CLOSE_SECONDS = 3
LONELY_SECONDS = 30.0


class DaskCluster:
    """The workers of a scheduler, as one client sees them.

    Args:
        scheduler: its address, for example tcp://10.0.0.1:8786.
        kept, again: for the message when the scheduler is lost: what is not lost, and what to do then.

    Raises:
        ConfigError: dask is not installed.
        RemoteError: the scheduler does not answer.
    """

    def __init__(self, scheduler: str, *, kept: str, again: str) -> None:
        self.scheduler = scheduler
        self._kept, self._again = kept, again
        self._client = _connect(scheduler)
        self._lonely_since = self._answered = time.monotonic()
        self._known: dict[str, int] = {}

    @property
    def runs(self) -> bool:
        """Whether the connection is there."""
        return bool(self._client.status == "running")

    def workers(self) -> dict[str, int]:
        """Address of every worker -> how many threads it runs tasks in; a note when there has been none for long.

        While the connection stands and the scheduler is only slow, what it said last.

        Raises:
            RemoteError: the scheduler was lost: the connection ended, or nothing came over it for two minutes.
        """
        if not self.runs:
            raise self._lost()
        try:
            ask = self._client.scheduler.identity
            found = self._client.sync(ask, n_workers=-1, callback_timeout=ANSWER_SECONDS)["workers"]
        except (OSError, TimeoutError) as error:
            if not self.runs or time.monotonic() - self._answered > LOST_SECONDS:
                raise self._lost() from error
            return self._known
        self._answered = time.monotonic()
        if found:
            self._lonely_since = time.monotonic()
        elif time.monotonic() - self._lonely_since > LONELY_SECONDS:
            note(f"{self.scheduler} has no workers; waiting for some: dask worker {self.scheduler}")
            self._lonely_since = time.monotonic()
        self._known = {address: int(facts["nthreads"]) for address, facts in found.items()}
        return self._known

    def submit(self, function: Callable[[str], str], text: str, *, worker: str | None = None) -> Any:
        """Start a task.

        Args:
            function: runs on a worker.
            text: what it is given.
            worker: the only one that may run it; None for any, and for another one when that is lost.
        """
        # retries and other workers would run a task of one worker again elsewhere, where there is a task already
        where: dict[str, Any] = {"workers": [worker], "allow_other_workers": False} if worker else {}
        key = f"kdcache-{uuid.uuid4().hex}"
        return self._client.submit(function, text, key=key, retries=0, pure=False, **where)

    def is_done(self, task: Any) -> bool:
        """Whether a task will change no more. One whose result was lost with its worker runs again elsewhere."""
        return task.status not in ("pending", "lost")

    def report(self, task: Any, *, worker: str | None = None) -> str | None:
        """What an ended task returned, however long that takes to arrive; None when its worker was lost.

        Args:
            task: done, or of a worker that is gone.
            worker: the only one that may run it, as in `submit`.

        Raises:
            RemoteError: a worker cannot run the function, or the scheduler was lost.
        """
        error: BaseException | None = None
        while task.status == "finished" or (task.status == "lost" and worker is None):
            try:
                return str(task.result(timeout=ANSWER_SECONDS))
            except (OSError, TimeoutError):
                # Slow, or gone with its worker: then another one does it again, unless it was that one's alone.
                if worker not in (None, *self.workers()):
                    break
            except Exception as raised:  # noqa: BLE001 - it was tried again and failed: told apart below
                error = raised
                break
        if task.status == "error" and error is None:
            try:
                error = task.exception(timeout=LOST_SECONDS)
            except (OSError, TimeoutError) as lost:
                raise self._lost() from lost
        task.release()
        if not self.runs:
            raise self._lost() from error
        if error is None or type(error).__name__ in ("KilledWorker", "CancelledError", "FutureCancelledError"):
            return None
        raise RemoteError(
            f"{self.scheduler}: a worker cannot run the task: {type(error).__name__}: {error}",
            hint="install the same kdcache on every worker: pip install 'kdcache[dask]'",
        )

    def cancel(self, tasks: list[Any]) -> None:
        """Take tasks back that no worker has begun; those that run are not stopped, but nobody waits for them."""
        if tasks and self.runs:
            self._client.cancel(tasks)

    def close(self) -> None:
        """End the connection, or give it up where nobody answers any more. Safe to call twice."""
        try:
            self._client.close(timeout=CLOSE_SECONDS)
        except (OSError, TimeoutError):
            self._client.status = "closed"  # else its destructor tries again for 20 s and prints a traceback

    def _lost(self) -> RemoteError:
        return RemoteError(f"{self.scheduler}: the Dask scheduler was lost; {self._kept}", hint=self._again)


def _silence_dask() -> None:
    """Let a lost scheduler be one error, ours: dask logs tracebacks of its own attempts to reconnect."""
    for name in tuple(logging.root.manager.loggerDict):
        if name == "distributed" or name.startswith("distributed."):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _connect(scheduler: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError(
            f"--dask {scheduler}: dask.distributed is not installed here", hint="pip install 'kdcache[dask]'"
        ) from error
    _silence_dask()
    connect: Any = Client  # untyped where it is installed, unknown where it is not
    deadline = time.monotonic() + LOST_SECONDS
    while True:
        try:
            return connect(scheduler, timeout=CONNECT_SECONDS, set_as_default=False, name="kdcache")
        except (OSError, TimeoutError, ValueError) as error:
            if not isinstance(error, ValueError) and time.monotonic() < deadline and _listens(scheduler):
                note(f"{scheduler}: something listens there, but no Dask scheduler answers yet; waiting")
                continue
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RemoteError(
                f"{scheduler}: no Dask scheduler answers ({first})",
                hint="dask scheduler starts one and prints its address; dask worker ADDRESS joins it",
            ) from error


def _listens(scheduler: str) -> bool:
    """Whether a port takes connections: then its scheduler may only be busy, or stopped for a moment."""
    host, _, port = scheduler.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except (OSError, ValueError):
        return False
    return True
