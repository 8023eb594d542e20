"""`distill --follow`: train while the dump still runs, and prove at the end that it was from what was sealed.

Before an epoch every block of its views is waited for and verified. What was read is remembered in the run folder, one
digest a view; when the store is sealed these are compared with its ledger, and only then is the run finished. A
finished run is the same, file by file, as one that began when the store was sealed.

Under torchrun every process looks at the files itself and waits by itself, so that no message between them can time
out. They agree on the rest: all follow if one of them does, and what one has read all have read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from kdcache.distill.config import DistillConfig
from kdcache.errors import ConfigError, CorruptStoreError, IncompatibleError, UnfinishedStoreError
from kdcache.loader.target_store import TargetStore, open_store
from kdcache.models.weights import write_atomically
from kdcache.progress import note
from kdcache.store.find import only_store
from kdcache.store.growing import GrowingStore, find_growing, just_sealed
from kdcache.store.lease import holder_of
from kdcache.store.reader import StoreReader, open_reader
from kdcache.store.roots import root_of
from kdcache.training.processes import Processes
from kdcache.training.runs import RunFolder, check_same, read_document

READ_FILE = "followed.json"  # in the run folder until the store is sealed: view (or "static") -> digest of its bytes
FOLLOWED = "followed"  # in config.json until the store is sealed: what is known of it instead of the root digest


class Follower:
    """The waiting and the remembering of one followed run, in each of its processes.

    Attributes:
        store: the growing store's targets.
        root_digest: of the sealed store once `settle` has proved that it is what was read; "" before.
    """

    def __init__(self, growing: GrowingStore, processes: Processes) -> None:
        self._growing = growing
        self._processes = processes
        self._reader = growing.reader()
        self.store = TargetStore(self._reader, device=processes.device)
        self.root_digest = ""  # not as soon as a look finds it sealed: the processes do not look at one moment
        self._read: dict[str, str] = {}
        self._folder: RunFolder | None = None
        note(f"following {growing.root}: {growing.progress()}")

    def ready(self, views: Iterable[int], topk: int) -> None:
        """Wait for views of the store, verify and decode them.

        Raises:
            UnfinishedStoreError: nobody writes the store any more.
            CorruptStoreError: a view is damaged and nobody repairs it.
            IncompatibleError: the run has read other bytes of it before, or another process did now.
        """
        for view in views:
            self._load(view, topk)
            self._remember(str(view), self._reader.view_digest(view))
        if not self._processes.same(json.dumps(self._read, sort_keys=True)):
            raise IncompatibleError(
                f"{self._reader.location}: the training processes have read different bytes of it; expected the same "
                "ones: a block was repaired between two looks, or the machines do not see the same files",
                hint="the same command with --resume reads it again",
            )
        self._save()

    def attach(self, folder: RunFolder) -> None:
        """Remember in this run folder from now on; what an earlier part of the run has read must be the same.

        Raises:
            IncompatibleError: it is not.
        """
        self._folder = folder
        if static := self._reader.static_digest():
            self._remember("static", static)
        for name, digest in _earlier(folder).items():
            self._remember(name, digest)
        self._save()

    def settle(self, folder: RunFolder, started: Mapping[str, Any]) -> None:
        """Wait until the store is sealed, prove that it is what was trained on, and name it in the run's files.

        Args:
            folder: of the run; its last epoch is done.
            started: what decides the run, with the sealed store's root digest missing.

        Raises:
            UnfinishedStoreError: nobody writes the store any more. IncompatibleError: it holds other bytes.
        """
        sealed = self._growing.wait_for_seal()
        _check_read(sealed, self._read)
        self._processes.wait()  # until every process has proved it: what is named now is not asked again
        _name_store(folder, started, sealed)
        self.root_digest = sealed.manifest.root_digest

    def _load(self, view: int, topk: int) -> None:
        tries = 0
        while True:
            self._growing.wait_for_view(view)
            try:
                self.store.targets(torch.empty(0, dtype=torch.int64), view, topk)  # no rows: only verify and decode
                return
            except CorruptStoreError as error:
                tries += 1
                self._growing.wait_for_repair(view, error, tries)

    def _remember(self, name: str, digest: str) -> None:
        if self._read.setdefault(name, digest) != digest:
            raise _other_bytes(self._reader.location, name)

    def _save(self) -> None:
        if self._folder is not None and self._folder.writes and _earlier(self._folder) != self._read:
            write_atomically(self._folder.path / READ_FILE, json.dumps(self._read, sort_keys=True).encode())


def open_for_training(config: DistillConfig, processes: Processes) -> tuple[TargetStore, Follower | None]:
    """The store of a request, and its follower when it is followed while it grows.

    Raises:
        UnfinishedStoreError: not sealed, and not to be followed; or nobody writes it.
        Everything `open_store` and `find_growing` raise.
    """
    if config.follow_timeout < 0:
        raise ConfigError(f"follow_timeout: expected 0 or more seconds, found {config.follow_timeout:g}")
    location = config.store or only_store().location
    if config.follow:
        growing = find_growing(location, timeout=config.follow_timeout)
        if processes.any(growing is not None):  # it may have been sealed between the looks of two processes
            follower = Follower(growing or just_sealed(location, timeout=config.follow_timeout), processes)
            return follower.store, follower
    return open_sealed(location, processes.device), None


def open_sealed(location: str, device: torch.device) -> TargetStore:
    """A sealed store; of one that is still written the error says by whom.

    Raises:
        UnfinishedStoreError: not sealed. Everything else `open_store` raises.
    """
    try:
        return open_store(location, device=device)
    except UnfinishedStoreError as error:
        root = root_of(location)
        writer = holder_of(root) if isinstance(root, Path) else None
        if writer is not None:
            error.message += f"; {writer} is writing it"
            error.hint = "wait for it, or train while it is written: the same command with --follow"
        raise


def followed_form(decides: Mapping[str, Any], store: TargetStore) -> dict[str, Any]:
    """config.json of a run whose store has no root digest yet."""
    manifest = store.manifest
    return {
        **decides,
        "store_root_digest": "",
        FOLLOWED: {"store_id": manifest.store_id, "views": manifest.num_views},
    }


def settle_earlier(folder: RunFolder, decides: Mapping[str, Any], store: TargetStore) -> None:
    """Before a run is resumed over a sealed store: if it began by following it, do what `Follower.settle` does.

    Args:
        folder: of the run.
        decides: of the request, with the sealed store's root digest.
        store: sealed.

    Raises:
        IncompatibleError: the run was started with other settings, or read other bytes.
    """
    path = folder.path / "config.json"
    kept = read_document(path) if path.is_file() else {}
    if FOLLOWED not in kept:
        if folder.writes:  # killed in the last moment of `settle`
            (folder.path / READ_FILE).unlink(missing_ok=True)
        return
    check_same(folder.path, kept, followed_form(decides, store))
    sealed = open_reader(store.location)
    _check_read(sealed, _earlier(folder))
    _name_store(folder, decides, sealed)


def _earlier(folder: RunFolder) -> dict[str, str]:
    path = folder.path / READ_FILE
    return read_document(path) if path.is_file() else {}


def _check_read(sealed: StoreReader, read: Mapping[str, str]) -> None:
    for name, digest in read.items():
        if name == "static":
            found = sealed.static_digest()
        else:
            found = sealed.view_digest(int(name)) if int(name) < sealed.manifest.num_views else ""
        if found != digest:
            raise _other_bytes(sealed.location, name)


def _other_bytes(location: str, name: str) -> IncompatibleError:
    what = "the store-level arrays were" if name == "static" else f"view {name} was"
    return IncompatibleError(
        f"{location}: {what} written again with other bytes after this run had read the first ones; expected the same "
        "bytes, as a repair on a like machine gives",
        hint="train again from the store as it is, with another --out",
    )


def _name_store(folder: RunFolder, decides: Mapping[str, Any], sealed: StoreReader) -> None:
    facts = {**decides, "store_root_digest": sealed.manifest.root_digest}
    facts.pop(FOLLOWED, None)
    folder.restate(facts, {"store_root_digest": sealed.manifest.root_digest}, without=FOLLOWED)
    if folder.writes:
        (folder.path / READ_FILE).unlink(missing_ok=True)
