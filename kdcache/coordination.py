"""The coordinator's side of a shared dump: watch blocks being committed, free those of dead workers, replace the dead.

What a worker is - a process here, a task on a Dask cluster - is its team's business, what it does is `dump_worker`'s.
"""

from __future__ import annotations

import json
import time
from typing import Any, Protocol

from kdcache import errors
from kdcache.errors import KdcacheError, LockedError, ResourceError
from kdcache.progress import Progress, note
from kdcache.store.writer import StoreWriter

LOOK_SECONDS = 0.5
TAKE_OVER_SECONDS = 2.0
DEATHS_IN_A_ROW = 6  # killed workers without a block committed in between: not bad luck any more


class Team(Protocol):
    """Workers that do what they were started for until no block is left."""

    def refill(self) -> None:
        """Start workers where there should be one and is none."""
        ...

    def ended(self) -> list[str | None]:
        """Reports of workers that ended since the last call; None for one that was killed."""
        ...

    def stop(self) -> None:
        """End all workers, at once, and wait until they are gone. Safe to call twice."""
        ...


class Coordinator:
    """Follows a shared store from the process that holds its lease.

    Args:
        writer: open and shared.
        progress: counts rows as they are committed.
    """

    def __init__(self, writer: StoreWriter, progress: Progress) -> None:
        self._writer = writer
        self._progress = progress
        self._next_look = 0.0
        self._next_take_over = time.monotonic() + TAKE_OVER_SECONDS

    def step(self, *, now: bool = False) -> int:
        """Look at the store when it is time (or `now`); the number of blocks found committed."""
        started = time.monotonic()
        if started < self._next_look and not now:
            return 0
        fresh = self._writer.refresh()
        for block in fresh:
            self._progress.update(block.rows)
        if started >= self._next_take_over:
            for message in self._writer.take_over_dead_claims():
                note(message)
            self._next_take_over = started + TAKE_OVER_SECONDS
        # A look lists the ledger: at 10^6 records that takes a second, and looking must stay a small share of the time.
        self._next_look = started + max(LOOK_SECONDS, 10 * (time.monotonic() - started))
        return len(fresh)


def coordinate(writer: StoreWriter, team: Team, progress: Progress) -> None:
    """Let a team write every pending block of a shared store.

    Raises:
        KdcacheError: what a worker reported; or ResourceError when workers are killed again and again.
    """
    coordinator = Coordinator(writer, progress)
    deaths = 0
    while writer.pending:
        ended = team.ended()
        if coordinator.step(now=bool(ended)):
            deaths = 0
        for report in ended:
            deaths += not raise_report(report)
        if deaths >= DEATHS_IN_A_ROW:
            raise ResourceError(
                f"{deaths} workers were killed one after another without finishing a block; expected them to live",
                hint="out of memory? fewer --workers or a smaller --batch-size; the same command then continues",
            )
        if writer.pending:
            team.refill()
            time.sleep(0.1)


def report_done(rows: int) -> str:
    """What a worker says at its end: how many rows it committed."""
    return json.dumps({"rows": rows})


def report_failure(error: BaseException) -> str:
    """What a worker says when it cannot go on; errors of kdcache keep their class, message and hint."""
    if isinstance(error, KdcacheError):
        return json.dumps({"error": type(error).__name__, "message": error.message, "hint": error.hint})
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        hint = "fewer --workers or a smaller --batch-size; the same command then continues"
        return json.dumps({"error": "ResourceError", "message": f"a worker is out of memory: {first}", "hint": hint})
    return json.dumps({"error": "", "message": f"{type(error).__name__}: {first}", "hint": ""})


def raise_report(report: str | None) -> bool:
    """Raise what a report says went wrong; whether the worker ended as it should."""
    if report is None:
        note("a worker was killed; its block goes to another one")
        return False
    value: dict[str, Any] = json.loads(report)
    if "error" not in value:
        return True
    kind = getattr(errors, str(value["error"]), None)
    if not (isinstance(kind, type) and issubclass(kind, KdcacheError)):
        raise RuntimeError(f"in a worker: {value['message']}")
    if issubclass(kind, LockedError):
        # It found its coordinator gone while that lives: a worker that was stopped for long. Another one goes on.
        note(f"a worker ended: {value['message']}")
        return False
    raise kind(str(value["message"]), hint=str(value["hint"]))
