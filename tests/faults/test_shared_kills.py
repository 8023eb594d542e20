"""SIGKILL of workers and coordinators of a shared store at random moments: out comes what one writer makes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdcache.store.manifest_file import read_manifest
from kdcache.store.verify import verify_store
from tests.architecture.source_tree import ROOT
from tests.store_cases import manifest_of, store_bytes, write_store

ROWS, VIEWS = 2000, 2  # 16 blocks
WORKERS = 3


def start(role: str, store: Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "tests.faults.shared_process", role, str(store), str(ROWS), str(VIEWS)]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def is_sealed(store: Path) -> bool:
    return (store / "zarr.json").exists() and read_manifest(store).complete


class Team:
    """A coordinator and some workers; whoever ended before the store is sealed is started again."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.processes: list[subprocess.Popen[str] | None] = [None] * (1 + WORKERS)

    def refill(self) -> None:
        for number, process in enumerate(self.processes):
            if process is not None and process.poll() is not None:
                _, errors = process.communicate()
                assert process.returncode in (0, 6, -signal.SIGKILL), errors
                self.processes[number] = process = None
            if process is None and not is_sealed(self.store):
                self.processes[number] = start("worker" if number else "coordinator", self.store)

    def kill(self, number: int) -> bool:
        process = self.processes[number]
        if process is None or process.poll() is not None:
            return False
        process.kill()
        return True

    def end(self) -> None:
        for process in self.processes:
            if process is not None:
                process.kill()
                process.communicate()


def kill_campaign(folder: Path, kills: int, *, seed: int) -> int:
    """Kill until `kills` hit a living process; the number of stores that got finished meanwhile."""
    manifest = manifest_of(rows=ROWS, views=VIEWS, classes=40)
    write_store(folder / "straight", manifest)
    expected = store_bytes(folder / "straight")
    chance, finished, team = random.Random(seed), 0, Team(folder / "store-0")
    deadline = time.monotonic() + 400 + 20 * kills
    try:
        while (kills > 0 or not finished) and time.monotonic() < deadline:
            team.refill()
            time.sleep(chance.uniform(0.2, 1.2))
            if kills > 0:
                kills -= team.kill(chance.randrange(1 + WORKERS))
            if is_sealed(team.store):
                team.end()
                assert verify_store(team.store).exit_code == 0
                assert store_bytes(team.store) == expected
                finished += 1
                team = Team(folder / f"store-{finished}")
            elif (team.store / "zarr.json").exists():
                assert not verify_store(team.store).problems
    finally:
        team.end()
    return finished


def test_kills_of_workers_and_coordinators(tmp_path: Path) -> None:
    assert kill_campaign(tmp_path, 4, seed=1) >= 1


@pytest.mark.slow
def test_sixty_kills(tmp_path: Path) -> None:
    assert kill_campaign(tmp_path, 60, seed=2) >= 3
