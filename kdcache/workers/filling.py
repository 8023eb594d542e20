"""Writing a store's blocks from what other stores hold (`derive`, `merge`): alone, or shared among workers.

Workers claim the blocks of the new store as those of a shared dump do, under one coordinator: a killed one costs its
block, the bytes are the same whoever writes them, and the same command continues.
"""

from __future__ import annotations

import importlib
import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from kdcache.coordination import share_with_team
from kdcache.errors import ConfigError, LostClaimError
from kdcache.parallel.dask_team import DaskTeam
from kdcache.parallel.threads import thread_variables, threads_each
from kdcache.progress import Progress, note
from kdcache.specs import StoreManifest
from kdcache.store.blocks import BlockId
from kdcache.store.joined_writer import JoinedWriter
from kdcache.store.writer import StoreWriter
from kdcache.version import __version__
from kdcache.worker_processes import ProcessTeam, work_once
from kdcache.workers.joining import JOIN_PATIENCE, join
from kdcache.workers.reports import reported
from kdcache.workers.tasks import Workforce

Columns = Mapping[str, NDArray[Any]]
Maker = Callable[[BlockId], Columns]  # a block's columns, as `StoreWriter.write_block` takes them
WAIT_SECONDS = 0.05  # between two looks for blocks that others give up


class MakerFactory(Protocol):
    """A top-level function that workers import by name: what it is given is JSON and the new store's manifest."""

    __module__: str
    __qualname__: str

    def __call__(self, request: Mapping[str, Any], manifest: StoreManifest) -> Maker:
        """Open what the blocks are made from; IncompatibleError when it is not what the manifest names."""
        ...


@dataclass(frozen=True, kw_only=True)
class Filling:
    """What the workers of one command share.

    Attributes:
        name: of the command, for progress and messages.
        location: the new store, an absolute path.
        factory, request: make the blocks.
    """

    name: str
    location: str
    factory: MakerFactory
    request: Mapping[str, Any]


def fill(writer: StoreWriter, filling: Filling, force: Workforce, maker: Maker) -> None:
    """Write every pending block of an open store.

    Args:
        writer: the store.
        filling: the work, for workers.
        force: who works.
        maker: what `filling.factory` would give, for this process when it works alone.

    Raises:
        KdcacheError: what making or writing a block raises, here or in a worker.
        ResourceError: workers are killed again and again. RemoteError: the Dask scheduler was lost. In all cases what
            is committed is kept.
    """
    if not writer.pending:
        return
    rows = sum(block.rows for block in writer.pending)
    with Progress(rows, "rows", label=filling.name, keep=False) as progress:
        if force.alone:
            _write_blocks(writer, maker, progress.update)
            return
        run = uuid.uuid4().hex
        with _team(filling, force, run) as team:
            share_with_team(writer, run, team, progress)


def _team(filling: Filling, force: Workforce, run: str) -> ProcessTeam | DaskTeam:
    order = {
        "version": __version__,
        "factory": f"{filling.factory.__module__}:{filling.factory.__qualname__}",
        "request": dict(filling.request),
        "location": filling.location,
        "run": run,
        "patience": JOIN_PATIENCE if force.dask else 0.0,
    }
    text = json.dumps(order)
    if force.dask:
        return DaskTeam(force.dask, report_of, text)
    variables = thread_variables(threads_each(force.workers))
    team = ProcessTeam("kdcache.workers.filling:main", [text] * force.workers, environment=variables)
    team.refill()  # now: importing torch takes seconds
    return team


def report_of(text: str) -> str:
    """Do the order of one line of JSON; the report of what became of it. Never raises. Runs on workers."""
    return reported(lambda: _do(json.loads(text)))


def main() -> None:
    """A worker process of `fill`."""
    work_once(report_of)


def _do(order: Mapping[str, Any]) -> int:
    if order["version"] != __version__:
        raise ConfigError(
            f"a worker runs kdcache {__version__}, the command {order['version']}",
            hint="install the same version everywhere",
        )
    module, _, name = str(order["factory"]).partition(":")
    factory: MakerFactory = getattr(importlib.import_module(module), name)
    writer = join(str(order["location"]), str(order["run"]), patience=float(order["patience"]))
    if writer is None:
        return 0
    written: list[int] = []
    with writer:
        maker = factory(order["request"], writer.manifest)
        while writer.views_left():
            if not _write_blocks(writer, maker, written.append):
                time.sleep(WAIT_SECONDS)  # for blocks of others, who may give them up
    return sum(written)


def _write_blocks(writer: StoreWriter | JoinedWriter, maker: Maker, on_rows: Callable[[int], object]) -> bool:
    """Make and write every block that can be claimed now; whether there was one."""
    claimed = False
    for view in writer.views_left():
        while (block := writer.claim(view)) is not None:
            claimed = True
            try:
                writer.write_block(block, maker(block))
            except LostClaimError as error:  # another worker has it: nothing is lost, so this one goes on
                note(error.message)
            else:
                on_rows(block.rows)
    return claimed
