"""`distill --follow` by two processes while the store grows: they leave what two leave over the sealed store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdcache.store.manifest_file import read_manifest
from tests.faults.test_shared_dump import TORCHRUN, VIEWS, wait_for_blocks
from tests.integration.distill_setup import finish, start
from tests.integration.small_world import Gate, World, make_world
from tests.integration.test_follow import distill, outcome, wait_for
from tests.remote_servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

AGREEING = """
import sys, torch
from kdcache.training.processes import joined_processes
with joined_processes("cpu") as processes:
    rank = processes.rank
    told = [processes.any(rank == 1), processes.any(False), processes.same("one"), processes.same(f"one {rank}")]
    assert told == [True, False, True, False], told
print("agreed")
"""
SKEWED = """
import os, pathlib, time
from kdcache.cli.main import main
from kdcache.distill import follow
real, rank = follow.find_growing, os.environ["RANK"]
def look(location, *, timeout):
    while rank == "1" and not pathlib.Path("sealed").exists():
        time.sleep(0.02)
    found = real(location, timeout=timeout)
    pathlib.Path(f"saw-{rank}").write_text("sealed" if found is None else "growing")
    return found
follow.find_growing = look
main()
"""


def ranks(port: int) -> list[dict[str, str]]:
    """The variables that torchrun would set for two processes."""
    return [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        | {"MASTER_PORT": str(port)}
        for rank in (0, 1)
    ]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Data and teachers."""
    return make_world(tmp_path)


@pytest.fixture
def gate(world: World, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Holds the dump when view 0 is whole (3 of 12 blocks)."""
    gate = Gate(world.folder / "gate", world.folder / "store.zarr")
    gate.hold(3)
    monkeypatch.setenv("KDCACHE_TEST_GATE", str(gate.path))
    return gate


def by_two(world: World, *words: str) -> None:
    """Run a command over a sealed store in two processes."""
    both = [start(world.folder, "-m", "kdcache", *words, variables=variables) for variables in ranks(free_port())]
    for process in both:
        finish(process)


def test_processes_tell_each_other(tmp_path: Path) -> None:
    both = [start(tmp_path, "-c", AGREEING, variables=variables) for variables in ranks(free_port())]
    assert [finish(process) for process in both] == ["agreed\n", "agreed\n"]


def test_two_processes_follow_a_growing_store(world: World, gate: Gate) -> None:
    """They begin before there is a store and have done an epoch while the dump is held in its second view."""
    words = distill(world, gate.store, "followed", "--follow")
    followed = start(world.folder, *TORCHRUN, str(free_port()), "-m", "kdcache", *words, "--json")
    dump = start(world.folder, "-m", "kdcache", *world.dump("gated", out=str(gate.store)), *VIEWS, "--json")
    wait_for(world.folder / "followed" / "state" / "epoch-00001.json", followed)
    assert not read_manifest(gate.store).complete
    assert json.loads((world.folder / "followed" / "config.json").read_text())["store_root_digest"] == ""
    gate.open()
    finish(dump)
    assert json.loads(finish(followed))["processes"] == 2
    by_two(world, *distill(world, gate.store, "plain"))
    assert outcome(world.folder / "followed") == outcome(world.folder / "plain")


def test_a_store_that_is_sealed_between_the_looks_of_two_processes_is_followed_by_both(
    world: World, gate: Gate
) -> None:
    """The first process sees it grow, the second one sees it sealed: they train as two do over the sealed store."""
    dump = start(world.folder, "-m", "kdcache", *world.dump("gated", out=str(gate.store)), *VIEWS, "--json")
    wait_for_blocks(dump, gate.store, 1)
    words = [*distill(world, gate.store, "followed", "--follow"), "--json"]
    both = [start(world.folder, "-c", SKEWED, *words, variables=variables) for variables in ranks(free_port())]
    wait_for(world.folder / "saw-0", both[0])
    gate.open()
    finish(dump)
    assert read_manifest(gate.store).complete
    (world.folder / "sealed").touch()
    results = [finish(process) for process in both]
    assert [(world.folder / f"saw-{rank}").read_text() for rank in (0, 1)] == ["growing", "sealed"]
    assert json.loads(results[0])["processes"] == 2
    by_two(world, *distill(world, gate.store, "plain"))
    assert outcome(world.folder / "followed") == outcome(world.folder / "plain")
