"""Many small tasks on a Dask cluster, their answers in order; a lost worker's task goes to another one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kdcache.errors import ResourceError
from kdcache.parallel.dask_cluster import DaskCluster

LOOK_SECONDS = 1.0  # between two looks at who is there
WAIT_SECONDS = 0.005


class DaskTasks:
    """A connection for tasks that read and write nothing shared; a context manager.

    Args:
        scheduler: its address, for example tcp://10.0.0.1:8786.

    Raises:
        ConfigError: dask is not installed.
        RemoteError: the scheduler does not answer.
    """

    def __init__(self, scheduler: str) -> None:
        self._cluster = DaskCluster(
            scheduler,
            kept="nothing was changed",
            again="start the cluster again, then give the same command",
        )
        self._threads = 0
        self._next_look = 0.0

    def in_order(self, function: Callable[[str], str], texts: Iterable[str], *, ahead: int) -> Iterator[str]:
        """What a function says to each text, in their order.

        Args:
            function: runs on a worker; importable there.
            texts: taken as they are needed.
            ahead: tasks given out for each thread of the cluster.

        Raises:
            RemoteError: the scheduler was lost, or workers cannot run the function.
            ResourceError: workers were lost one after another at the same task.
        """
        waiting: deque[Any] = deque()
        left = iter(texts)
        try:
            while True:
                self._look()
                while len(waiting) < ahead * max(1, self._threads) and (text := next(left, None)) is not None:
                    waiting.append(self._cluster.submit(function, text))
                if not waiting:
                    return
                yield self._reply(waiting.popleft())
        finally:
            self._cluster.cancel(list(waiting))

    def __enter__(self) -> DaskTasks:
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.close()

    def _look(self) -> None:
        if time.monotonic() >= self._next_look:
            self._threads = sum(self._cluster.workers().values())
            self._next_look = time.monotonic() + LOOK_SECONDS

    def _reply(self, task: Any) -> str:
        while not self._cluster.is_done(task):
            time.sleep(WAIT_SECONDS)
            self._look()
        reply = self._cluster.report(task)
        if reply is None:
            self._cluster.workers()  # raises when it is the scheduler that was lost
            raise ResourceError(
                f"{self._cluster.scheduler}: workers were lost one after another at the same blocks; expected them to "
                "live",
                hint="out of memory? give the workers more, then the same command again",
            )
        task.release()
        return reply
