"""The coordinator's side of a shared dump: watch blocks being committed, free those of dead workers, replace the dead.

What a worker is - a process here, a task on a Dask cluster - is its team's business, what it does is `dump_worker`'s.
"""

from __future__ import annotations

import time
from typing import Protocol

from kdcache.errors import ResourceError
from kdcache.progress import Progress, note
from kdcache.store.writer import StoreWriter
from kdcache.workers.reports import raise_report

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

    def stop(self, *, at_once: bool = False) -> None:
        """End all workers and wait until they are gone. Safe to call twice.

        Args:
            at_once: the work failed or was interrupted: workers that only end by themselves are not waited for.
        """
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


def share_with_team(writer: StoreWriter, run: str, team: Team, progress: Progress) -> None:
    """Share a store under a run's name and let a team write what is pending; the team is stopped in every case.

    Raises:
        KdcacheError: as `coordinate`.
    """
    writer.share(run)
    try:
        coordinate(writer, team, progress)
    except BaseException:
        team.stop(at_once=True)
        raise
    team.stop()


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
