"""Which process holds something of a store, and whether it still lives: shared by the lease and by block claims.

Liveness is judged on one clock only: the file system's own time stamps, so hosts with different clocks agree. On the
same host the kernel knows, at once.
"""

from __future__ import annotations

import os
import platform
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.errors import CorruptStoreError, HostileStoreError
from kdcache.store.files import WORK_FOLDER, as_store_errors, read_json

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0  # 12 missed beats: longer than a stalled network mount, shorter than a coffee
_MAX_HOLDER = 4096


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


def this_process() -> Holder:
    """A holder for the running process, under a new token."""
    return Holder(
        token=uuid.uuid4().hex,
        host=platform.node(),
        pid=os.getpid(),
        process_space=_process_space(),
        process_start=_process_start(os.getpid()) or "",
        since=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
    )


def read_holder(root: Path, relative: str) -> Holder | None:
    """The holder that a file of the work folder names; None when it is missing, torn or something else."""
    try:
        value: Any = read_json(root, relative, limit=_MAX_HOLDER)
        return Holder(**value) if isinstance(value, dict) else None
    except (FileNotFoundError, TypeError, CorruptStoreError, HostileStoreError):
        return None


def is_dead(root: Path, relative: str, holder: Holder | None, *, stale_seconds: float = STALE_SECONDS) -> bool:
    """Whether what a file stands for has no living holder.

    Args:
        root: the store's folder.
        relative: the file that the holder touches.
        holder: what it says; None when that cannot be read, then only its age counts.
        stale_seconds: silence after which a holder elsewhere counts as dead.
    """
    if holder is not None and is_here(holder):
        return is_gone(holder)
    return silence(root, relative) > stale_seconds


def is_here(holder: Holder) -> bool:
    """Whether its process number means something in this process: the same host, boot and namespace."""
    return holder.host == platform.node() and holder.process_space == _process_space()


def is_gone(holder: Holder) -> bool:
    """Whether the process of a holder on this host has ended (or its number now means another process)."""
    return _process_start(holder.pid) != holder.process_start


def silence(root: Path, relative: str, *, now: float | None = None) -> float:
    """Seconds since a file was last touched, on the file system's own clock; infinite when it is not there.

    Args:
        root: the store's folder.
        relative: the file.
        now: `now_there` of this moment, when several files are looked at.
    """
    try:
        return (now_there(root) if now is None else now) - (root / relative).stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def now_there(root: Path) -> float:
    """The file system's present time, from a file written this moment: two hosts' clocks need not agree.

    Raises:
        FileNotFoundError: there is no work folder. ResourceError: it cannot be written, or the disk is full.
    """
    probe = root / WORK_FOLDER / f"now.{uuid.uuid4().hex}"
    with as_store_errors(probe):
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
