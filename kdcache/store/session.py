"""The session of a shared dump: which blocks it is about and who coordinates it, for the workers that join.

One file, written by the holder of the lease when the store is ready and removed before it is sealed. A session is over
when its coordinator no longer holds the lease or no longer lives, whatever the file says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.errors import CorruptStoreError, HostileStoreError
from kdcache.specs import StoreManifest
from kdcache.store.blocks import BlockId, block_at
from kdcache.store.files import WORK_FOLDER, read_json, write_json
from kdcache.store.holder import is_dead, read_holder
from kdcache.store.lease import LEASE_FILE

SESSION_FILE = f"{WORK_FOLDER}/session.json"
_MAX_SESSION = 64 * 2**20  # a store of 10^6 blocks of which every other one is pending takes 20 MB


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a worker must know to join.

    Attributes:
        run: names the dump; a worker joins the dump that started it and no other one.
        token: of the coordinator's lease.
        ranges: pending blocks as (view, first, end), blocks first <= b < end of a view.
    """

    run: str
    token: str
    ranges: tuple[tuple[int, int, int], ...]

    def blocks(self, manifest: StoreManifest) -> Iterator[BlockId]:
        """The blocks this session is about, view-major."""
        for view, first, end in self.ranges:
            for block in range(first, end):
                yield block_at(manifest, view, block)


def publish(root: Path, *, run: str, token: str, pending: Iterable[BlockId]) -> None:
    """Let workers join; the store's metadata must be in place."""
    value = {"run": run, "token": token, "ranges": _ranges(pending)}
    write_json(root / SESSION_FILE, value)


def withdraw(root: Path) -> None:
    """End the session: nobody joins any more, and workers that look find it over."""
    (root / SESSION_FILE).unlink(missing_ok=True)


def read_session(root: Path) -> Session | None:
    """The session a store's work folder states, living or not; None when there is none or it cannot be read."""
    try:
        value: Any = read_json(root, SESSION_FILE, limit=_MAX_SESSION)
        ranges = tuple((int(view), int(first), int(end)) for view, first, end in value["ranges"])
        return Session(run=str(value["run"]), token=str(value["token"]), ranges=ranges)
    except (FileNotFoundError, CorruptStoreError, HostileStoreError, KeyError, TypeError, ValueError):
        return None


def is_alive(root: Path, session: Session) -> bool:
    """Whether the session's coordinator holds the lease and lives."""
    holder = read_holder(root, LEASE_FILE)
    return holder is not None and holder.token == session.token and not is_dead(root, LEASE_FILE, holder)


def _ranges(pending: Iterable[BlockId]) -> list[list[int]]:
    ranges: list[list[int]] = []
    for block in pending:
        if ranges and ranges[-1][0] == block.view and ranges[-1][2] == block.block:
            ranges[-1][2] += 1
        else:
            ranges.append([block.view, block.block, block.block + 1])
    return ranges
