"""One writer at a time at a remote place: an object written by conditional put, and beats that keep it young.

As `lease` does for a folder: it spares work and keeps two writers apart; the ledger protects the data. Age is judged
on the service's clock alone, by the times it gives to the lease and to an object written this moment.
"""

from __future__ import annotations

import json
import threading
import uuid
from contextlib import suppress
from dataclasses import asdict, fields
from types import TracebackType
from typing import Any

from kdcache.errors import LockedError, NotFoundError, RemoteError, ResourceError
from kdcache.progress import note
from kdcache.store.files import WORK_FOLDER
from kdcache.store.holder import Holder, is_gone, is_here, this_process
from kdcache.store.location import Location, Version

LEASE_NAME = f"{WORK_FOLDER}/remote-lease.json"
BEAT_SECONDS = 15.0  # one small request each; a service that is slow for a minute costs no lease
STALE_SECONDS = 90.0
_MAX_LEASE = 4096


class RemoteLease:
    """A held lease; a context manager. Its heartbeat runs in a thread of its own.

    Attributes:
        holder: this process.
    """

    def __init__(self, place: Location, holder: Holder, version: Version, *, beat_seconds: float) -> None:
        self.holder = holder
        self._place = place
        self._version = version
        self._beats = 0
        self._lost = False
        self._beat_seconds = beat_seconds
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kdcache-remote-lease", daemon=True)

    @classmethod
    def acquire(
        cls, place: Location, *, beat_seconds: float = BEAT_SECONDS, stale_seconds: float = STALE_SECONDS
    ) -> RemoteLease:
        """Take the lease of a remote place.

        Raises:
            LockedError: a living process holds it; the message names host, process and time.
            RemoteError: the service failed.
        """
        holder = this_process()
        data = _text(holder, 0)
        for _ in range(3):  # each round somebody else was quicker
            if place.put_new(LEASE_NAME, data):
                return cls._held(place, holder, data, beat_seconds)
            try:
                found, version = place.get_version(LEASE_NAME, limit=_MAX_LEASE)
            except NotFoundError:
                continue  # released a moment ago
            previous = _parse(found)
            if not _is_dead(place, previous, stale_seconds):
                raise LockedError(
                    f"{place}: {previous or 'someone'} is writing here; expected no other writer",
                    hint=f"wait for it, or stop it: a writer that is silent for {stale_seconds:.0f} s is replaced",
                )
            if place.replace(LEASE_NAME, data, version) is not None:
                note(f"{place}: took over from {previous or 'a writer'}, which is gone; what it has written is kept")
                return cls._held(place, holder, data, beat_seconds)
        raise LockedError(f"{place}: other writers come and go; expected none", hint="give the same command again")

    @classmethod
    def _held(cls, place: Location, holder: Holder, data: bytes, beat_seconds: float) -> RemoteLease:
        found, version = place.get_version(LEASE_NAME, limit=_MAX_LEASE)
        if found != data:
            raise LockedError(f"{place}: {_parse(found) or 'someone'} is writing here; expected no other writer")
        return cls(place, holder, version, beat_seconds=beat_seconds)

    def check(self) -> None:
        """Raise LockedError when the last beat found that another writer has taken over."""
        if self._lost:
            raise LockedError(
                f"{self._place}: this process lost its lease: it was silent for too long",
                hint="let the other process finish, or stop it and give the same command again",
            )

    def beat(self) -> None:
        """Show that this process lives; notes when the lease was lost. Raises RemoteError when the service fails."""
        with self._lock:
            if self._lost:
                return
            self._beats += 1
            version = self._place.replace(LEASE_NAME, _text(self.holder, self._beats), self._version)
            self._lost = version is None
            self._version = version or self._version

    def release(self) -> None:
        """Stop the heartbeat and remove the lease when it is still ours; a failing service is no error here."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(RemoteError, ResourceError, NotFoundError):
            found = _parse(self._place.get(LEASE_NAME, limit=_MAX_LEASE))
            if found is not None and found.token == self.holder.token:
                self._place.delete(LEASE_NAME)

    def _run(self) -> None:
        while not self._stop.wait(self._beat_seconds):
            # the next beat may reach the service (or the folder); `check` and `beat` say when the lease is lost
            with suppress(RemoteError, ResourceError):
                self.beat()

    def __enter__(self) -> RemoteLease:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _is_dead(place: Location, holder: Holder | None, stale_seconds: float) -> bool:
    if holder is not None and is_here(holder):
        return is_gone(holder)
    probe = f"{WORK_FOLDER}/now.{uuid.uuid4().hex}"
    place.put(probe, b"")
    try:
        now, beaten = place.modified(probe), place.modified(LEASE_NAME)
    finally:
        place.delete(probe)
    return now is not None and (beaten is None or now - beaten > stale_seconds)


def _text(holder: Holder, beats: int) -> bytes:
    return json.dumps({**asdict(holder), "beats": beats}, sort_keys=True).encode()


def _parse(data: bytes) -> Holder | None:
    """The holder a lease names; None when it cannot be read, then only its age counts."""
    try:
        value: Any = json.loads(data)
        return Holder(**{field.name: value[field.name] for field in fields(Holder)})
    except (ValueError, KeyError, TypeError):
        return None
