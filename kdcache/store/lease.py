"""One dump at a time: a lease file with a heartbeat, taken over when its holder is dead or silent.

The lease keeps two dumps from doing the same work twice; it does not protect the data, the ledger does. Who shares
the work of its holder claims blocks, one by one (`claims`); who counts as dead is `holder`'s business.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from kdcache.errors import LockedError, ResourceError
from kdcache.store.files import WORK_FOLDER, make_folder, one_at_a_time, write_json
from kdcache.store.holder import BEAT_SECONDS, STALE_SECONDS, Holder, is_dead, read_holder, this_process

LEASE_FILE = f"{WORK_FOLDER}/lease.json"


class Lease:
    """A held lease. Release it, or let its heartbeat stop: after `STALE_SECONDS` another writer may take it over.

    Attributes:
        taken_over_from: the dead or silent holder that was replaced, or None.
    """

    def __init__(self, root: Path, holder: Holder, *, taken_over_from: Holder | None, beat_seconds: float) -> None:
        self.holder = holder
        self.taken_over_from = taken_over_from
        self._root = root
        self._beat_seconds = beat_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="kdcache-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise LockedError when another writer has taken the lease over."""
        current = read_holder(self._root, LEASE_FILE)
        if current is None or current.token != self.holder.token:
            raise LockedError(
                f"{self._root}: this process lost its lease to {current or 'someone who removed it'};"
                " it was silent for too long",
                hint="let the other process finish, or stop it and give the same command again",
            )

    def release(self) -> None:
        """Stop the heartbeat and remove the lease when it is still ours."""
        self._stop.set()
        self._thread.join()
        with one_at_a_time(self._root):
            current = read_holder(self._root, LEASE_FILE)
            if current is not None and current.token == self.holder.token:
                (self._root / LEASE_FILE).unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(self._beat_seconds):
            # A missed beat is not an error here: `check` says whether the lease is still ours before each commit.
            with suppress(OSError):
                os.utime(self._root / LEASE_FILE)


def acquire(root: Path, *, stale_seconds: float = STALE_SECONDS, beat_seconds: float = BEAT_SECONDS) -> Lease:
    """Take a store's lease.

    Args:
        root: the store's folder; it exists.
        stale_seconds: silence after which a holder counts as dead.
        beat_seconds: how often the holder shows that it lives.

    Raises:
        LockedError: a living process holds it; the message names host, process and time.
        ResourceError: the folder cannot be written.
    """
    make_folder(root / WORK_FOLDER)
    mine = this_process()
    with one_at_a_time(root):  # without locks `check` decides
        previous = read_holder(root, LEASE_FILE)
        if previous is not None and not is_dead(root, LEASE_FILE, previous, stale_seconds=stale_seconds):
            raise LockedError(
                f"{root}: {previous} is writing this store; expected no other writer",
                hint=f"wait for it, or stop it: a lease that is silent for {stale_seconds:.0f} s is taken over",
            )
        write_json(root / LEASE_FILE, asdict(mine))
    lease = Lease(root, mine, taken_over_from=previous, beat_seconds=beat_seconds)
    try:
        lease.check()  # on file systems without locks two takers may meet: the last one wins, the other one stops
    except LockedError:
        lease.release()
        raise
    return lease


def holder_of(root: Path, *, stale_seconds: float = STALE_SECONDS) -> Holder | None:
    """The living process that writes a store, or None; for messages: where nothing can be written to learn the file
    system's time, a holder on another host counts as living.
    """
    holder = read_holder(root, LEASE_FILE)
    with suppress(ResourceError):
        if holder is not None and is_dead(root, LEASE_FILE, holder, stale_seconds=stale_seconds):
            return None
    return holder
