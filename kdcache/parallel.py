"""Work on a Dask cluster: one long task on each of its workers. The only module that imports dask (extra `dask`).

Tasks get and return text; what they do is the caller's function, which must be importable on the workers.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any

from kdcache.errors import ConfigError, RemoteError
from kdcache.progress import note

CONNECT_SECONDS = 10
END_SECONDS = 10.0
CLOSE_SECONDS = 3
LONELY_SECONDS = 30.0


class DaskTeam:
    """A task on every worker of a cluster, also on those that join later; a context manager.

    Args:
        scheduler: its address, for example tcp://10.0.0.1:8786.
        function: runs on a worker: order -> report.
        order: the same for all.

    Raises:
        ConfigError: dask is not installed.
        RemoteError: the scheduler does not answer.
    """

    def __init__(self, scheduler: str, function: Callable[[str], str], order: str) -> None:
        self._scheduler = scheduler
        self._function = function
        self._order = order
        self._client = _connect(scheduler)
        self._tasks: dict[str, Any] = {}
        self._lonely_since = time.monotonic()

    def refill(self) -> None:
        """Start a task on every worker that has none."""
        workers = self._workers()
        for address in workers - self._tasks.keys():
            # retries and other workers would run it again elsewhere, where there is a task already
            self._tasks[address] = self._client.submit(
                self._function,
                self._order,
                key=f"kdcache-{uuid.uuid4().hex}",
                workers=[address],
                allow_other_workers=False,
                retries=0,
                pure=False,
            )
        if workers:
            self._lonely_since = time.monotonic()
        elif time.monotonic() - self._lonely_since > LONELY_SECONDS:
            note(f"{self._scheduler} has no workers; waiting for some: dask worker {self._scheduler}")
            self._lonely_since = time.monotonic()

    def ended(self) -> list[str | None]:
        """Reports of the tasks that ended since the last call; None where the worker was lost."""
        workers = self._workers()
        reports: list[str | None] = []
        for address, task in tuple(self._tasks.items()):
            if task.status == "pending" and address in workers:
                continue
            del self._tasks[address]
            reports.append(self._report(task))
        return reports

    def stop(self) -> None:
        """Wait a little for the tasks, which end when nothing is left to do, and forget them."""
        tasks, self._tasks = self._tasks, {}
        deadline = time.monotonic() + END_SECONDS
        while self._client.status == "running" and time.monotonic() < deadline:
            if all(task.status != "pending" for task in tasks.values()):
                break
            time.sleep(0.05)
        for task in tasks.values():
            task.release()

    def __enter__(self) -> DaskTeam:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tasks = {}
        self._client.close(timeout=CLOSE_SECONDS)

    def _workers(self) -> set[str]:
        """Addresses of the cluster's workers."""
        try:
            if self._client.status == "running":
                return set(self._client.sync(self._client.scheduler.identity, n_workers=-1)["workers"])
        except (OSError, TimeoutError) as error:
            raise self._lost() from error
        raise self._lost()

    def _report(self, task: Any) -> str | None:
        if task.status == "finished":
            return str(task.result(timeout=CONNECT_SECONDS))
        error = task.exception(timeout=CONNECT_SECONDS) if task.status == "error" else None
        task.release()
        if error is None or type(error).__name__ in ("KilledWorker", "CancelledError", "FutureCancelledError"):
            return None
        raise RemoteError(
            f"{self._scheduler}: a worker cannot run the task: {type(error).__name__}: {error}",
            hint="install the same kdcache on every worker: pip install 'kdcache[dask]'",
        )

    def _lost(self) -> RemoteError:
        return RemoteError(
            f"{self._scheduler}: the Dask scheduler was lost; what is committed is kept",
            hint="start the cluster again, then give the same dump-teacher command: it continues",
        )


def _connect(scheduler: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError(
            f"--dask {scheduler}: dask.distributed is not installed here", hint="pip install 'kdcache[dask]'"
        ) from error
    try:
        connect: Any = Client  # untyped where it is installed, unknown where it is not
        return connect(scheduler, timeout=CONNECT_SECONDS, set_as_default=False, name="kdcache")
    except (OSError, TimeoutError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RemoteError(
            f"{scheduler}: no Dask scheduler answers ({first})",
            hint="dask scheduler starts one and prints its address; dask worker ADDRESS joins it",
        ) from error
