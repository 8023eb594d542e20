"""One writer at a time: a lease file with a heartbeat, taken over when its holder is dead or silent.

The lease keeps two dumps from doing the same work twice; it does not protect the data, the ledger does. Liveness is
judged on one clock only: the file system's own time stamps, so hosts with different clocks agree.
"""

from __future__ import annotations

import fcntl
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdcache.errors import CorruptStoreError, HostileStoreError, LockedError
from kdcache.store.files import WORK_FOLDER, as_store_errors, make_folder, read_json, write_json

LEASE_FILE = f"{WORK_FOLDER}/lease.json"
BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0  # 12 missed beats: longer than a stalled network mount, shorter than a coffee
_MAX_LEASE = 4096


@dataclass(frozen=True)
class Holder:
    """Who writes a store: host, process and since when (UTC, for people; never compared)."""

    token: str
    host: str
    pid: int
    process_space: str
    process_start: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since} UTC"


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
        current = _read_holder(self._root)
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
        with _short_lock(self._root):
            current = _read_holder(self._root)
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
    mine = _this_process()
    with _short_lock(root):
        previous = _read_holder(root)
        if previous is not None and not _is_dead(root, previous, stale_seconds):
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
    """The living process that writes a store, or None."""
    holder = _read_holder(root)
    return None if holder is None or _is_dead(root, holder, stale_seconds) else holder


def _this_process() -> Holder:
    return Holder(
        token=uuid.uuid4().hex,
        host=platform.node(),
        pid=os.getpid(),
        process_space=_process_space(),
        process_start=_process_start(os.getpid()) or "",
        since=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
    )


def _read_holder(root: Path) -> Holder | None:
    """The holder in the lease file; an unreadable one counts as nobody's (writes of it are atomic)."""
    try:
        value: Any = read_json(root, LEASE_FILE, limit=_MAX_LEASE)
        return Holder(**value) if isinstance(value, dict) else None
    except (FileNotFoundError, TypeError, CorruptStoreError, HostileStoreError):
        return None


def _is_dead(root: Path, holder: Holder, stale_seconds: float) -> bool:
    if holder.host == platform.node() and holder.process_space == _process_space():
        return _process_start(holder.pid) != holder.process_start
    try:
        return _now_there(root) - (root / LEASE_FILE).stat().st_mtime > stale_seconds
    except FileNotFoundError:
        return True


def _now_there(root: Path) -> float:
    """The file system's present time, from a file written this moment: two hosts' clocks need not agree."""
    probe = root / WORK_FOLDER / f"now.{uuid.uuid4().hex}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _process_space() -> str:
    """Names the machine's boot and the process-id namespace, so that a pid is compared only where it means the same."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"unknown-{platform.system()}"


def _process_start(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None when there is no such process. A reused pid differs."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return None if fields[0] in "ZX" else fields[19]  # a killed process that nobody has waited for is dead
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return ""
    return ""


@contextmanager
def _short_lock(root: Path) -> Iterator[None]:
    """Serialise looking at and replacing the lease, where the file system has locks; without them `check` decides."""
    with as_store_errors(root):
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
