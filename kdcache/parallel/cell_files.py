"""The files of a grid: FOLDER/cells/NAME.json for a result, NAME.error.txt for a traceback, NAME.log for what it said.

A result appears whole or not at all. One sitting at a time holds the folder's lease; one process at a time runs a cell.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcache.canonical import digest_of, from_json, to_json
from kdcache.errors import CorruptStoreError, HostileStoreError, LockedError
from kdcache.progress import note
from kdcache.store.files import WORK_FOLDER, make_folder, read_json, write_atomic, write_json
from kdcache.store.holder import read_holder
from kdcache.store.lease import LEASE_FILE, Lease, acquire, holder_of

MAX_RESULT = 64 * 2**20
CELLS_FOLDER = "cells"


@dataclass(frozen=True, kw_only=True)
class FinishedCell:
    """A result file.

    Attributes:
        name: of the cell; arguments: what it was run with; digest: of these and of what the cell needed.
        result: what it returned.
        seconds: how long it took; finished: when, UTC.
        needed: `stamp` of each result it needed, as that was when it ran; empty in files of before this was kept.
        run: drawn anew for every run; empty in files of before this was kept.
    """

    name: str
    arguments: Mapping[str, Any]
    digest: str
    result: Mapping[str, Any]
    seconds: float
    finished: str = ""
    needed: Mapping[str, Any] = field(default_factory=dict)
    run: str = ""

    @property
    def stamp(self) -> str:
        """Names this very run of the cell, also of two within a second that gave the same result."""
        told = [self.digest, to_json(self.result), self.seconds, self.finished]
        return digest_of([*told, self.run] if self.run else told)[:16]


class CellFiles:
    """The files of the cells of one grid.

    Args:
        folder: the grid's folder, absolute.
    """

    def __init__(self, folder: Path) -> None:
        self.place = folder / CELLS_FOLDER

    def log(self, name: str) -> Path:
        """What a cell that ran in a process of its own wrote to stdout and stderr."""
        return self.place / f"{name}.log"

    def traceback(self, name: str) -> Path:
        """Why a cell failed."""
        return self.place / f"{name}.error.txt"

    def read(self, name: str) -> FinishedCell | None:
        """The result of a cell; None when there is none. A torn or foreign file counts as none, with a note."""
        try:
            found = from_json(FinishedCell, read_json(self.place, f"{name}.json", limit=MAX_RESULT), where=name)
        except FileNotFoundError:
            return None
        except (CorruptStoreError, HostileStoreError) as error:
            note(f"{self.place / name}.json is no result of a cell; {name} is run again ({error.message})")
            return None
        return found if found.name == name else None

    def write(self, finished: FinishedCell) -> None:
        """Keep a result, whole or not at all; its traceback of an earlier run goes.

        Raises:
            ResourceError: no space or no permission.
        """
        make_folder(self.place)
        write_json(self.place / f"{finished.name}.json", vars(finished))
        self.traceback(finished.name).unlink(missing_ok=True)

    def write_traceback(self, name: str, text: str) -> Path:
        """Keep why a cell failed; the file."""
        write_atomic(self.traceback(name), text.encode(errors="replace"))
        return self.traceback(name)

    def remove(self, name: str) -> None:
        """Remove a result of other arguments."""
        (self.place / f"{name}.json").unlink(missing_ok=True)

    def is_shared_with(self, token: str) -> bool:
        """Whether this folder is the one that the sitting of this token holds, seen from here."""
        holder = read_holder(self.place, LEASE_FILE)
        return holder is not None and holder.token == token

    @contextmanager
    def only_here(self, name: str) -> Iterator[None]:
        """Run a cell in one process at a time.

        One that outlived its sitting for a moment is waited for. Where the file system has no locks nobody waits.
        """
        path = self.place / WORK_FOLDER / f"{name}.lock"
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


@contextmanager
def sitting(files: CellFiles) -> Iterator[Lease]:
    """Hold a grid's folder while it is run.

    Raises:
        LockedError: another sitting runs it.
        ResourceError: the folder cannot be written.
    """
    make_folder(files.place)
    try:
        lease = acquire(files.place)
    except LockedError as error:
        raise LockedError(
            f"{files.place.parent}: this grid is being run by {holder_of(files.place) or 'another process'};"
            " expected one sitting at a time",
            hint="wait for it or stop it, then give the same command again: finished cells are kept",
        ) from error
    try:
        yield lease
    finally:
        lease.release()


def utc_now() -> str:
    """The time for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
