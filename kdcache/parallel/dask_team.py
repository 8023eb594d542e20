"""One long task on each worker of a Dask cluster: the team of `dump-teacher --dask`."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from kdcache.parallel.dask_cluster import DaskCluster

END_SECONDS = 10.0


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
        self._function = function
        self._order = order
        self._cluster = DaskCluster(
            scheduler,
            kept="what is committed is kept",
            again="start the cluster again, then give the same command: it continues",
        )
        self._tasks: dict[str, Any] = {}

    def refill(self) -> None:
        """Start a task on every worker that has none."""
        for address in self._cluster.workers().keys() - self._tasks.keys():
            self._tasks[address] = self._cluster.submit(self._function, self._order, worker=address)

    def ended(self) -> list[str | None]:
        """Reports of the tasks that ended since the last call; None where the worker was lost."""
        workers = self._cluster.workers()
        reports: list[str | None] = []
        for address, task in tuple(self._tasks.items()):
            if not self._cluster.is_done(task) and address in workers:
                continue
            del self._tasks[address]
            reports.append(self._cluster.report(task, worker=address))
        return reports

    def stop(self, *, at_once: bool = False) -> None:
        """Wait a little for the tasks, which end when nothing is left to do, and forget them.

        Args:
            at_once: something is left to do, so that they end only when they find their coordinator gone: do not wait.
        """
        tasks, self._tasks = self._tasks, {}
        deadline = time.monotonic() + (0.0 if at_once else END_SECONDS)
        while self._cluster.runs and time.monotonic() < deadline:
            if all(self._cluster.is_done(task) for task in tasks.values()):
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
        self._cluster.close()
