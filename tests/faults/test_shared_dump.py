"""Dumps shared by processes: the same store whatever their number and whoever is killed, by real signals."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kdcache.cli.main import run
from kdcache.store.verify import verify_store
from tests.faults.test_dump_faults import one_error
from tests.integration.distill_setup import finish, start
from tests.integration.small_world import TRAIN_ROWS, World, make_world
from tests.store_cases import store_bytes

Captured = pytest.CaptureFixture[str]
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port")
VIEWS = ("--augment", "cifar", "--views", "4", "--allow-weak-teacher")  # 12 blocks


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Data, teachers and the store of the slow teacher that one process makes."""
    world = make_world(tmp_path_factory.mktemp("world"))
    with pytest.MonkeyPatch.context() as calm:
        calm.setenv("KDCACHE_TEST_CALM", "1")
        assert run([*world.dump("slow", out=str(world.folder / "straight.zarr")), *VIEWS, "-q"]) == 0
    return world


def dump(world: World, store: Path, *more: str, teacher: str = "slow") -> subprocess.Popen[str]:
    """Start a dump of the same views; slow teachers sleep 0.15 s a batch, unless they are told to be calm."""
    return start(world.folder, "-m", "kdcache", *world.dump(teacher, out=str(store)), *VIEWS, "--json", *more)


def workers_of(parent: int) -> list[int]:
    """Process ids of the workers a dump has started."""
    done = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True, check=False
    )
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    return [int(line[0]) for line in lines if "dump_worker" in line[1]]


def committed(store: Path) -> int:
    """Blocks of an unfinished store that are committed."""
    return len(list((store / ".kdcache" / "ledger").glob("*.json")))


def wait_for_blocks(process: subprocess.Popen[str], store: Path, count: int) -> None:
    """Until so many blocks are committed."""
    deadline = time.monotonic() + 1500  # pytest's own limit is shorter; a busy machine takes minutes to start three
    while process.poll() is None and time.monotonic() < deadline:
        if committed(store) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate()[1] if process.poll() is not None else "no blocks were committed")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for_the_end_of(pids: list[int], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, pids)), "workers outlived their parent"


def test_killed_workers_are_replaced_and_a_killed_parent_is_continued(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """Kill a worker, then the parent; the workers end, and what is left is the store of one process when it is done."""
    store = tmp_path / "store.zarr"
    process = dump(world, store, "--workers", "2")
    wait_for_blocks(process, store, 1)
    first = workers_of(process.pid)
    assert len(first) == 2
    os.kill(first[0], signal.SIGKILL)
    wait_for_blocks(process, store, 4)
    assert process.poll() is None
    pids = workers_of(process.pid)
    process.kill()
    _, err = process.communicate()
    assert "a worker was killed" in err
    wait_for_the_end_of([*first, *pids])
    before = verify_store(store)
    assert before.exit_code == 3
    assert before.blocks_checked >= 4
    monkeypatch.setenv("KDCACHE_TEST_CALM", "1")
    capsys.readouterr()
    assert run([*world.dump("slow", out=str(store)), *VIEWS, "--json", "-q"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rows_written"] < 4 * TRAIN_ROWS - 3 * 188  # at least 4 blocks were kept, the smallest has 188 rows
    assert verify_store(store, deep=True).exit_code == 0
    assert store_bytes(store) == store_bytes(world.folder / "straight.zarr")


def test_ranks_of_torchrun_share_the_blocks(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store.zarr"
    port = str(29500 + os.getpid() % 10_000)
    process = start(
        world.folder, *TORCHRUN, port, "-m", "kdcache", *world.dump("slow", out=str(store)), *VIEWS, "--json"
    )
    wait_for_blocks(process, store, 2)
    holders = {json.loads(path.read_text() or "{}").get("pid") for path in (store / ".kdcache" / "claims").glob("*")}
    result = json.loads(finish(process))  # one document: only the first process answers
    assert result["rows_written"] == 4 * TRAIN_ROWS
    assert len(holders - {None}) <= 2
    assert store_bytes(store) == store_bytes(world.folder / "straight.zarr")


def test_workers_in_two_ways_are_refused(
    world: World, capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = [*world.dump(out=str(tmp_path / "s")), "--workers", "2"]
    assert run([*words, "--dask", "tcp://127.0.0.1:1"]) == 2
    one_error(capsys.readouterr().err, "--workers 2 and --dask")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(words) == 2
    one_error(capsys.readouterr().err, "--workers 2 under torchrun")
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_a_failing_teacher_in_a_worker_is_one_error_and_the_dump_continues(
    world: World, tmp_path: Path, capsys: Captured
) -> None:
    store = tmp_path / "store.zarr"
    process = dump(world, store, "--workers", "2", teacher="tired")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    one_error(err, "the teacher is tired", "same command continues")
    assert verify_store(store).exit_code == 3
    assert not (store / ".kdcache" / "lease.json").exists()


@pytest.mark.slow
def test_random_kills_of_workers_and_parents(world: World, tmp_path: Path) -> None:
    """Twenty SIGKILLs, two in three of a worker; every store that gets finished is that of one process."""
    chance = random.Random(5)
    store, stores, kills = tmp_path / "store-0", 0, 0
    expected = store_bytes(world.folder / "straight.zarr")
    while kills < 20:
        process = dump(world, store, "--workers", str(chance.choice([1, 2, 3])))
        while process.poll() is None and kills < 20:
            time.sleep(chance.uniform(1, 12))
            workers = workers_of(process.pid)
            target = chance.choice([*workers, *workers, process.pid]) if workers else process.pid
            if process.poll() is None:
                os.kill(target, signal.SIGKILL)
                kills += 1
        process.kill()
        process.communicate()
        wait_for_the_end_of(workers)
        if (store / "zarr.json").exists() and verify_store(store).complete:
            assert store_bytes(store) == expected
            stores += 1
            store = tmp_path / f"store-{stores}"
    assert not verify_store(store).problems if (store / "zarr.json").exists() else True
    finish(dump(world, store, "--workers", "2"))
    assert store_bytes(store) == expected


@pytest.mark.slow
def test_a_stopped_worker_is_taken_over_and_goes_on_afterwards(world: World, tmp_path: Path) -> None:
    """SIGSTOP: alive, but silent for longer than is allowed."""
    store = tmp_path / "store.zarr"
    process = dump(world, store, "--workers", "2")
    wait_for_blocks(process, store, 1)
    (stopped, _) = workers_of(process.pid)
    os.kill(stopped, signal.SIGSTOP)
    deadline = time.monotonic() + 300
    while not verify_store(store).complete and process.poll() is None and time.monotonic() < deadline:
        time.sleep(1)
    assert "which is silent" in process.communicate()[1]
    assert process.returncode == 0
    assert store_bytes(store) == store_bytes(world.folder / "straight.zarr")
    assert not is_alive(stopped)
