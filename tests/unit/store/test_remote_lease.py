"""The heartbeat of a lease at a place; what services do is in tests/integration (test_push.py, test_remote_dump.py)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kdcache.errors import RemoteError, ResourceError
from kdcache.store.location import Location
from kdcache.store.remote_lease import RemoteLease


def test_the_heartbeat_goes_on_after_a_beat_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder on a mount that stutters, or a service that fails once: the lease must not grow old for that."""
    failures = [ResourceError("no space"), RemoteError("no answer")]
    beats: list[float] = []

    def beat() -> None:
        beats.append(time.monotonic())
        if failures:
            raise failures.pop(0)

    lease = RemoteLease.acquire(Location.at(tmp_path), beat_seconds=0.01)
    monkeypatch.setattr(lease, "beat", beat)
    with lease:
        deadline = time.monotonic() + 10
        while len(beats) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(beats) >= 3
