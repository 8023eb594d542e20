"""`run_cells`: a grid of cells in order, in processes or on a Dask cluster; finished cells are never run again."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from kdcache.canonical import to_json
from kdcache.errors import ConfigError
from kdcache.parallel.cell_files import CellFiles, FinishedCell, sitting
from kdcache.parallel.cell_processes import CellProcesses, Ended, InThisProcess
from kdcache.parallel.cell_work import CellOrder, CellReport, Function, finished_cell
from kdcache.parallel.cells import Cell, Failure, GridResult, digests, in_order, plain_json
from kdcache.parallel.dask_cells import DaskCells
from kdcache.parallel.threads import threads_each
from kdcache.progress import duration, note
from kdcache.store.lease import Lease

TRIES = 2  # a process killed once is bad luck (out of memory beside another cell, a spot machine); twice is the cell


class _Team(Protocol):
    """Where cells are run."""

    @property
    def room(self) -> int: ...

    def start(self, order: CellOrder, function: Function) -> None: ...

    def wait(self) -> list[Ended]: ...

    def close(self) -> None: ...


def run_cells(
    cells: Iterable[Cell],
    *,
    folder: Path,
    workers: int = 1,
    dask: str | None = None,
    threads: int | None = None,
) -> GridResult:
    """Run every cell of a grid that is not finished, and return the results of all.

    A finished cell leaves FOLDER/cells/NAME.json and is skipped from then on, until its arguments or those of a cell it
    needs change, or one it needs is run again (because its file was removed); then it is run again and its old result
    removed, which a note says. A cell that raises is reported, with its traceback in FOLDER/cells/NAME.error.txt, and
    does not stop the others; those that need it are not run. A cell whose process is killed is tried once more. Killed
    or interrupted at any point, the same call continues.

    Args:
        cells: in the order they shall be started, where needs allow.
        folder: of the grid; one sitting at a time runs it.
        workers: processes on this machine; 1 runs the cells here, one after another. What cells print goes to
            FOLDER/cells/NAME.log when there are more.
        dask: address of a Dask scheduler whose workers run the cells instead. They need the same code and, for relative
            paths in arguments, the same working folder. "" means none.
        threads: a cell computes with. By default the cores divided by `workers`, at most OMP_NUM_THREADS where that is
            set; with one worker or Dask what the process has.

    Raises:
        ConfigError: a name twice, an unknown need, needs in a circle, numbers below 1, or Dask and several workers.
        LockedError: another sitting runs this grid.
        RemoteError: the Dask scheduler does not answer or was lost; finished cells are kept.
        ResourceError: no space, or no permission.
    """
    grid = in_order(cells)
    if workers < 1 or (threads is not None and threads < 1):
        raise ConfigError(f"expected at least 1 worker and 1 thread, found {workers} and {threads}")
    if dask and workers > 1:
        raise ConfigError(
            f"--workers {workers} and --dask {dask} exclude each other",
            hint="the cluster decides how many workers there are: dask worker SCHEDULER",
        )
    files = CellFiles(folder.resolve())
    with sitting(files) as lease:
        run = _Sitting(grid, files, lease, threads=threads if workers == 1 else None)
        if run.waiting:
            run.to_the_end(_team(workers, dask, threads))
        return run.outcome()


def _team(workers: int, dask: str | None, threads: int | None) -> _Team:
    if dask:
        return DaskCells(dask)
    if workers == 1:
        return InThisProcess()
    return CellProcesses(workers, threads=threads or threads_each(workers))


class _Sitting:
    """One call of `run_cells` that holds the folder."""

    def __init__(self, grid: tuple[Cell, ...], files: CellFiles, lease: Lease, *, threads: int | None) -> None:
        self._grid, self._files, self._lease, self._threads = grid, files, lease, threads
        self._digests = digests(grid)
        self._finished: dict[str, FinishedCell] = {}
        self._failed: dict[str, Failure] = {}
        self._not_run: dict[str, str] = {}
        self._orders: dict[str, CellOrder] = {}  # of the cells that run
        self._tries: dict[str, int] = {}
        for cell in grid:
            found = files.read(cell.name)
            changed = None if found is None else self._changed(found, cell)
            if found is not None and changed is None:
                self._finished[cell.name] = found
            elif found is not None:
                note(f"{cell.name}: {changed}; it is run again and its old result removed")
        self._skipped = tuple(self._finished)
        self.waiting = [cell for cell in grid if cell.name not in self._finished]
        self._started = time.monotonic()

    def _changed(self, found: FinishedCell, cell: Cell) -> str | None:
        """Why a result does not stand for a cell any more; None where it does. What the cell needs was asked before."""
        if found.digest != self._digests[cell.name]:
            return _change(found, cell)
        for need in cell.needs:
            if need not in self._finished:
                return f"it needs {need}, which has no result"
            if found.needed.get(need) not in (None, self._finished[need].stamp):
                return f"it needs {need}, which was run again since"
        return None

    def to_the_end(self, team: _Team) -> None:
        """Run what is waiting."""
        try:
            while self.waiting or self._orders:
                self._give_up_what_cannot_run()
                for cell in self._ready()[: max(0, team.room)]:
                    self._start(cell, team)
                for ended in team.wait():
                    self._take(ended)
        except KeyboardInterrupt:
            note(f"interrupted: {len(self._finished)} of {len(self._grid)} cells are finished and kept")
            raise
        finally:
            team.close()

    def outcome(self) -> GridResult:
        """What came of the grid so far."""
        names = [cell.name for cell in self._grid]
        return GridResult(
            results={name: self._finished[name].result for name in names if name in self._finished},
            failed={name: self._failed[name] for name in names if name in self._failed},
            not_run={name: self._not_run[name] for name in names if name in self._not_run},
            skipped=self._skipped,
            seconds={name: self._finished[name].seconds for name in names if name in self._finished},
        )

    def _ready(self) -> list[Cell]:
        return [cell for cell in self.waiting if all(need in self._finished for need in cell.needs)]

    def _give_up_what_cannot_run(self) -> None:
        for cell in tuple(self.waiting):  # in the order of the grid, needs first: one pass finds all
            bad = next((need for need in cell.needs if need in self._failed or need in self._not_run), None)
            if bad is not None:
                self.waiting.remove(cell)
                self._not_run[cell.name] = self._not_run.get(bad, bad)

    def _start(self, cell: Cell, team: _Team) -> None:
        self._lease.check()
        self._files.remove(cell.name)
        self.waiting.remove(cell)
        self._tries[cell.name] = self._tries.get(cell.name, 0) + 1
        order = CellOrder(
            name=cell.name,
            arguments=plain_json(cell.arguments, subject=f"cell {cell.name}: its arguments"),
            digest=self._digests[cell.name],
            needed={need: self._finished[need].stamp for need in cell.needs},
            reference=cell.reference,
            path=tuple(str(Path(entry).resolve()) for entry in sys.path),
            folder=str(self._files.place.parent),
            token=self._lease.holder.token,
            threads=self._threads,
        )
        self._orders[cell.name] = order
        if isinstance(team, InThisProcess):
            note(f"cell {cell.name}")
        team.start(order, cell.run)

    def _take(self, ended: Ended) -> None:
        order = self._orders.pop(ended.name)
        report = ended.report
        if report is None:
            self._take_death(ended)
        elif report.result is None:
            self._fail(ended.name, report.error, self._files.write_traceback(ended.name, report.traceback))
        else:
            self._keep(order, report, report.result)

    def _take_death(self, ended: Ended) -> None:
        if self._tries[ended.name] < TRIES:
            note(f"{ended.name}: its process died ({ended.reason}); it is tried once more")
            self.waiting.insert(0, next(cell for cell in self._grid if cell.name == ended.name))
            return
        self._fail(ended.name, f"its process died {TRIES} times ({ended.reason})", None)

    def _fail(self, name: str, message: str, traceback: Path | None) -> None:
        self._failed[name] = Failure(message=message, traceback=traceback)
        first = message.splitlines()[0]
        note(f"{self._counts()} {name} FAILED: {first}" + (f" (traceback: {traceback})" if traceback else ""))

    def _keep(self, order: CellOrder, report: CellReport, result: Mapping[str, Any]) -> None:
        kept = self._files.read(order.name)
        if kept is None or kept.digest != order.digest:  # a worker of another machine, with other disks
            kept = finished_cell(order, result, report.seconds)
            self._files.write(kept)
        self._finished[order.name] = kept
        note(f"{self._counts()} {order.name}: {duration(report.seconds)}{self._left()}")

    def _counts(self) -> str:
        done = len(self._finished) + len(self._failed) + len(self._not_run)
        return f"[{done}/{len(self._grid)}]"

    def _left(self) -> str:
        """How long the rest takes at the pace of this sitting."""
        here = len(self._finished) - len(self._skipped) + len(self._failed)
        left = len(self.waiting) + len(self._orders)
        if not left:
            return ""
        return f"; about {duration((time.monotonic() - self._started) / max(here, 1) * left)} left"


def _change(found: FinishedCell, cell: Cell) -> str:
    """What is different from the arguments a result file was made with."""
    old, new = dict(found.arguments), to_json(cell.arguments)
    names = [name for name in sorted({*old, *new}) if old.get(name, ...) != new.get(name, ...)]
    if not names:
        return "a cell it needs has other arguments now"
    shown = [f"{name} {old.get(name)!r:.60} -> {new.get(name)!r:.60}" for name in names[:3]]
    return f"its arguments changed ({', '.join(shown)}{', ...' if len(names) > 3 else ''})"
