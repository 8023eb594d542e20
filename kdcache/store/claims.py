"""Claims on single blocks: several workers of one dump share a store, a block at a time.

A claim is a file that only one process can create; its holder touches it while it works. Claims save work, as the lease
does; the ledger protects the data. Only the coordinator, the holder of the lease, removes claims of others.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from kdcache.errors import KdcacheError, LostClaimError
from kdcache.store.blocks import BlockId
from kdcache.store.files import WORK_FOLDER, as_store_errors, make_folder
from kdcache.store.holder import (
    BEAT_SECONDS,
    STALE_SECONDS,
    Holder,
    is_gone,
    is_here,
    now_there,
    read_holder,
    silence,
    this_process,
)
from kdcache.store.layout import ArrayLayout

CLAIMS_FOLDER = f"{WORK_FOLDER}/claims"
_CLAIM_NAME = re.compile(r"(0|[1-9]\d{0,9})-(0|[1-9]\d{0,9})\.json")
_CHUNK_PARTIAL = re.compile(r"(.+)/c/(\d{1,10})(?:/(\d{1,10}))?(?:/\d{1,10})*\.[0-9a-f]+\.partial")


class Claims:
    """The blocks one worker has claimed; a thread shows that they are worked on until `close`.

    Args:
        root: the store's folder.
        beat_seconds: how often that is shown.
        on_beat: called in the same thread at every beat.
    """

    def __init__(
        self, root: Path, *, beat_seconds: float = BEAT_SECONDS, on_beat: Callable[[], None] | None = None
    ) -> None:
        self.holder = this_process()
        self._root = root
        self._held: dict[tuple[int, int], BlockId] = {}
        self._beat_seconds = beat_seconds
        self._on_beat = on_beat
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="kdcache-claims", daemon=True)
        self._thread.start()

    def holds(self, block: BlockId) -> bool:
        """Whether this worker claimed the block and has not given it back; another may have taken it over since."""
        return (block.view, block.block) in self._held

    def take(self, block: BlockId) -> bool:
        """Claim a block; False when it is claimed already.

        Raises:
            FileNotFoundError: nobody shares this store any more.
            ResourceError: no space or no permission.
        """
        path = self._root / _claim_file(block.view, block.block)
        text = json.dumps(asdict(self.holder)).encode()
        with as_store_errors(path):
            try:
                # atomic on local disks and on NFS from version 3 on; not flushed: a claim need not survive a crash
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
            except FileExistsError:
                return False
            try:
                os.write(descriptor, text)
            except OSError:
                path.unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)
        self._held[block.view, block.block] = block
        return True

    def check(self, block: BlockId) -> None:
        """Raise LostClaimError when the claim is no longer this worker's; it is then forgotten."""
        current = read_holder(self._root, _claim_file(block.view, block.block))
        if current is not None and current.token == self.holder.token:
            return
        self._held.pop((block.view, block.block), None)
        raise LostClaimError(
            f"{self._root}: {block} was taken over by {current or 'the coordinator'};"
            " this worker was silent for too long",
            hint="nothing is lost: another worker does this block",
        )

    def release(self, block: BlockId) -> None:
        """Give a claim back; harmless when it was lost."""
        if self._held.pop((block.view, block.block), None) is None:
            return
        relative = _claim_file(block.view, block.block)
        current = read_holder(self._root, relative)
        if current is not None and current.token == self.holder.token:
            (self._root / relative).unlink(missing_ok=True)

    def close(self) -> None:
        """Give every claim back and end the thread. Safe to call twice."""
        self._stop.set()
        self._thread.join()
        for block in tuple(self._held.values()):
            self.release(block)

    def _beat(self) -> None:
        while not self._stop.wait(self._beat_seconds):
            for view, block in tuple(self._held):
                with suppress(OSError):  # a claim that was taken over: `check` says so before the commit
                    os.utime(self._root / _claim_file(view, block))
            if self._on_beat is not None:
                with suppress(OSError, KdcacheError):  # a mount that stutters: the next look says it, or goes well
                    self._on_beat()


def make_claims_folder(root: Path) -> None:
    """Create the folder of the claims."""
    make_folder(root / CLAIMS_FOLDER)


def claimed_places(root: Path) -> set[tuple[int, int]]:
    """(view, block) of every claim there is, living or dead."""
    try:
        names = os.listdir(root / CLAIMS_FOLDER)
    except FileNotFoundError:
        return set()
    matches = map(_CLAIM_NAME.fullmatch, names)
    return {(int(match[1]), int(match[2])) for match in matches if match is not None}


def remove_dead_claims(root: Path, *, stale_seconds: float = STALE_SECONDS) -> dict[tuple[int, int], Holder | None]:
    """Remove the claims whose process is gone or that are silent, so that others can claim the blocks.

    For the coordinator only: with one process that removes, nobody can take over what has just been taken over.

    Returns:
        (view, block) -> who held it; None when the claim could not be read.
    """
    removed: dict[tuple[int, int], Holder | None] = {}
    places = sorted(claimed_places(root))
    now = now_there(root) if places else 0.0
    for view, block in places:
        relative = _claim_file(view, block)
        holder = read_holder(root, relative)
        gone = holder is not None and is_here(holder) and is_gone(holder)
        # A process that lives but is silent (stopped, or hung in a file system) is taken over, too: work must go on.
        if not gone and silence(root, relative, now=now) <= stale_seconds:
            continue
        again = read_holder(root, relative)
        if (again and again.token) == (holder and holder.token):
            (root / relative).unlink(missing_ok=True)
            removed[view, block] = holder
    return removed


def place_of_partial(relative: str, layout: Mapping[str, ArrayLayout]) -> tuple[int, int] | None:
    """(view, block) whose chunk a partial file is of; None for a file that no claim covers.

    A chunk's path names its block, and the block its claim: that is how the partial files of living claims are known.
    """
    match = _CHUNK_PARTIAL.fullmatch(relative)
    array = layout.get(match[1]) if match is not None else None
    if match is None or array is None or array.kind not in ("view_rows", "rows"):
        return None
    if array.kind == "rows":
        return 0, int(match[2])
    return (int(match[2]), int(match[3])) if match[3] is not None else None


def _claim_file(view: int, block: int) -> str:
    return f"{CLAIMS_FOLDER}/{view}-{block}.json"
