"""Real SIGKILLs at random moments: what is committed stays right, the rest is written again, the result is the same."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdcache.errors import IncompatibleError, NotFoundError
from kdcache.specs import StoreManifest
from kdcache.store.manifest_file import read_manifest
from kdcache.store.verify import verify_store
from tests.architecture.source_tree import ROOT
from tests.store_cases import manifest_of, store_bytes, write_store

ROWS, VIEWS = 2000, 2
COMMAND = [sys.executable, "-m", "tests.faults.writer_process"]


def start(store: Path) -> subprocess.Popen[str]:
    arguments = [*COMMAND, str(store), str(ROWS), str(VIEWS)]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_campaign(folder: Path, kills: int, *, seed: int) -> tuple[int, int]:
    """Kill `kills` writers; finish a store whenever one gets through; (kills that hit work, stores finished)."""
    manifest = manifest_of(rows=ROWS, views=VIEWS, classes=40)
    straight = write_store(folder / "straight", manifest)
    expected = store_bytes(folder / "straight")
    chance = random.Random(seed)
    hits, finished, store = 0, 0, folder / "store-0"
    for _ in range(kills):
        process = start(store)
        assert process.stdout is not None
        ready = process.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0, 0.8) if ready else 0)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGKILL), errors
        hits += process.returncode != 0
        finished += check_after_kill(store, straight, expected)
        if finished and store.name == f"store-{finished - 1}":
            store = folder / f"store-{finished}"
    if not store.exists() or not read_manifest(store).complete:
        assert write_store(store, manifest).root_digest == straight.root_digest
        assert store_bytes(store) == expected
        finished += 1
    return hits, finished


def check_after_kill(store: Path, straight: StoreManifest, expected: dict[str, bytes]) -> int:
    """A killed store says it is unfinished and holds no bad committed block; a sealed one equals the straight one."""
    if not (store / "zarr.json").exists():  # killed before the root file: nothing is there yet
        with pytest.raises((NotFoundError, IncompatibleError)):
            verify_store(store)
        return 0
    report = verify_store(store)
    assert not report.problems, report.problems
    if not report.complete:
        assert report.exit_code == 3
        return 0
    assert report.root_digest == straight.root_digest
    assert store_bytes(store) == expected
    return 1


def test_ten_kills(tmp_path: Path) -> None:
    hits, finished = kill_campaign(tmp_path, 10, seed=1)
    assert hits >= 5
    assert finished >= 1


@pytest.mark.slow
def test_fifty_kills(tmp_path: Path) -> None:
    hits, finished = kill_campaign(tmp_path, 50, seed=2)
    assert hits >= 30
    assert finished >= 2


def test_an_interrupt_leaves_an_unfinished_store_that_continues(tmp_path: Path) -> None:
    process = start(tmp_path / "s")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert verify_store(tmp_path / "s").exit_code == 3
    assert not (tmp_path / "s" / ".kdcache" / "lease.json").exists()
    sealed = write_store(tmp_path / "s", manifest_of(rows=ROWS, views=VIEWS, classes=40))
    assert sealed.complete
