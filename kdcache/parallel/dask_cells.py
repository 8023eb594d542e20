"""Cells as tasks of a Dask cluster: one for each thread of its workers; a lost worker's cell goes to another one."""

from __future__ import annotations

import time
from typing import Any

from kdcache.parallel.cell_processes import Ended
from kdcache.parallel.cell_work import CellOrder, CellReport, Function, do_cell
from kdcache.parallel.dask_cluster import DaskCluster
from kdcache.progress import note

LOOK_SECONDS = 0.2


class DaskCells:
    """Cells on the workers of a scheduler.

    Args:
        scheduler: its address, for example tcp://10.0.0.1:8786.

    Raises:
        ConfigError: dask is not installed.
        RemoteError: the scheduler does not answer.
    """

    def __init__(self, scheduler: str) -> None:
        self._cluster = DaskCluster(
            scheduler,
            kept="finished cells are kept",
            again="start the cluster again, then give the same command: it runs what is not finished",
        )
        self._tasks: dict[str, Any] = {}
        self._workers = self._cluster.workers()

    @property
    def room(self) -> int:
        """How many more cells can be started now: one for each thread, so that Dask has no queue to lose."""
        return sum(self._workers.values()) - len(self._tasks)

    def start(self, order: CellOrder, function: Function) -> None:
        """Submit a cell; the function is imported where it runs."""
        self._tasks[order.name] = self._cluster.submit(do_cell, order.to_text())

    def wait(self) -> list[Ended]:
        """What ended in the last moments.

        Raises:
            RemoteError: the scheduler was lost, or the workers cannot run cells.
        """
        time.sleep(LOOK_SECONDS)
        before, self._workers = self._workers, self._cluster.workers()
        for address in sorted(before.keys() - self._workers.keys()):
            note(f"the worker {address} was lost; what it ran goes to another one")
        return [self._ended(name, task) for name, task in tuple(self._tasks.items()) if self._cluster.is_done(task)]

    def close(self) -> None:
        """Take back what has not begun and end the connection; what runs goes on to its end."""
        tasks, self._tasks = self._tasks, {}
        self._cluster.cancel(list(tasks.values()))
        self._cluster.close()

    def _ended(self, name: str, task: Any) -> Ended:
        del self._tasks[name]
        text = self._cluster.report(task)
        if text is None:
            return Ended(name=name, report=None, reason="the workers it ran on were lost one after another")
        task.release()
        return Ended(name=name, report=CellReport.from_text(text))
