"""Who is dumping what: a claim on a store key in a catalogue, so that two people do not run the same teacher.

A claim saves work and protects nothing: a dump without one, or after a claim that died, is only done twice. Its
holder renews it; one that is silent for `STALE_SECONDS` on the catalogue's own clock is taken over.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from kdcache.canonical import canonical_json, from_json, to_json
from kdcache.errors import CorruptStoreError, KdcacheError, LockedError, NotFoundError
from kdcache.progress import note
from kdcache.store.catalog import Catalog, who_am_i

CLAIMS = "claims"
BEAT_SECONDS = 20.0
STALE_SECONDS = 120.0
MAX_CLAIM = 4096


@dataclass(frozen=True, kw_only=True)
class Claimant:
    """Who holds a claim: user@host, process, start (UTC), what is being made, and a token that no other claim has."""

    by: str
    process: int
    since: str
    what: str
    token: str
    beat: int = 0

    def __str__(self) -> str:
        return f"{self.by} (process {self.process}, since {self.since})"


class Claim:
    """A held claim; a context manager that renews it in the background and gives it back."""

    def __init__(self, catalog: Catalog, name: str, mine: Claimant, *, beat_seconds: float) -> None:
        self._catalog = catalog
        self._name = name
        self._mine = mine
        self._beat_seconds = beat_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="kdcache-claim", daemon=True)

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        try:
            if _read(self._catalog, self._name).token == self._mine.token:
                self._catalog.location.delete(self._name)
        except KdcacheError:
            return  # taken over, removed, or out of reach: it ages and is taken over

    def _beat(self) -> None:
        beat = 0
        while not self._stop.wait(self._beat_seconds):
            beat += 1
            try:
                found, version = self._catalog.location.get_version(self._name, limit=MAX_CLAIM)
                if json.loads(found).get("token") != self._mine.token:
                    return  # someone took it over; both finish, and the second finds the first one's store
                renewed = {**to_json(self._mine), "beat": beat}
                self._catalog.location.replace(self._name, canonical_json(renewed).encode(), version)
            except (KdcacheError, ValueError):
                continue  # the next beat may get through


def claim(
    catalog: Catalog,
    key: str,
    *,
    what: str,
    wait: bool = False,
    settled: Callable[[], bool] = lambda: False,
    stale_seconds: float = STALE_SECONDS,
    beat_seconds: float = BEAT_SECONDS,
) -> Claim | None:
    """Claim a store key.

    Args:
        catalog: where.
        key: store key of what is going to be dumped.
        what: a few words for whoever comes second.
        wait: wait while someone else holds it, instead of refusing.
        settled: asked while waiting: whether the store is there now.

    Returns:
        the claim, or None when waiting ended because `settled` said so.

    Raises:
        LockedError: someone holds it, and `wait` is not set; the message names them.
        ConfigError, RemoteError: the catalogue cannot be written.
    """
    name = f"{CLAIMS}/{key}.json"
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    mine = Claimant(by=who_am_i(), process=os.getpid(), since=since, what=what, token=uuid.uuid4().hex)
    body = canonical_json(to_json(mine)).encode()
    told = False
    while not catalog.location.put_new(name, body):
        try:
            held, version = catalog.location.get_version(name, limit=MAX_CLAIM)
            holder = _parse(held, f"{catalog}/{name}")
        except NotFoundError:
            continue  # given back between the two requests
        if _age(catalog, name) > stale_seconds:
            if catalog.location.replace(name, body, version) is not None:
                note(f"{catalog}: took over from {holder}, which has been silent for {stale_seconds:.0f} s")
                break
            continue
        if not wait:
            raise LockedError(
                f"{catalog}: {holder} is dumping {holder.what}",
                hint="--wait waits for the store; or choose another --catalog",
            )
        if not told:
            note(f"{catalog}: waiting for {holder}, who is dumping {holder.what}")
            told = True
        if settled():
            return None
        time.sleep(min(5.0, stale_seconds / 4))
    return Claim(catalog, name, mine, beat_seconds=beat_seconds)


def _age(catalog: Catalog, name: str) -> float:
    """Seconds since the claim was written, both ends on the catalogue's clock: a probe object tells its present."""
    probe = f"{CLAIMS}/.clock-{uuid.uuid4().hex}"
    catalog.location.put(probe, b"")
    try:
        written = {item.name: item.modified for item in catalog.location.list(CLAIMS)}
    finally:
        catalog.location.delete(probe)
    return written[probe] - written[name] if probe in written and name in written else 0.0


def _read(catalog: Catalog, name: str) -> Claimant:
    return _parse(catalog.location.get(name, limit=MAX_CLAIM), f"{catalog}/{name}")


def _parse(content: bytes, where: str) -> Claimant:
    try:
        return from_json(Claimant, json.loads(content), where=where)
    except ValueError as error:
        raise CorruptStoreError(f"{where}: not a claim ({error})", hint="remove this file if nobody dumps") from error
