"""How a worker comes to the store that another process coordinates."""

from __future__ import annotations

import os
import time

from kdcache.errors import KdcacheError, LockedError
from kdcache.store.joined_writer import JoinedWriter
from kdcache.store.manifest_file import read_manifest

JOIN_SECONDS = 0.1
JOIN_PATIENCE = 120.0  # seconds a worker on a cluster waits for the coordinator: file systems there show files late


def join(location: str, run: str, *, patience: float = 0.0) -> JoinedWriter | None:
    """Join the work `run` on a store as soon as it can be joined; None when the store was finished meanwhile.

    Args:
        location: the store, an absolute path.
        run: names the work.
        patience: seconds to wait for the coordinator; 0 waits for ever (then something else ends the worker).

    Raises:
        LockedError: no coordinator came within the patience.
    """
    deadline = time.monotonic() + patience if patience else float("inf")
    while True:
        writer = JoinedWriter.join(location, run=run)
        if writer is not None:
            return writer
        if is_finished(location):
            return None
        if time.monotonic() > deadline:
            raise LockedError(
                f"{location}: no process coordinates the writing of this store; expected one within {patience:.0f} s",
                hint="is the folder the same on this machine? then give the same command again",
            )
        time.sleep(JOIN_SECONDS)


def is_finished(location: str) -> bool:
    """Whether a sealed store is there."""
    try:
        return read_manifest(location).complete
    except KdcacheError:
        return False


def absolute_location(location: str) -> str:
    """A local path made absolute; a URL as it is."""
    return location if "://" in location else os.path.abspath(location)
