"""Dumps on a real local Dask cluster: workers come, are killed and replaced; scheduler and client are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from kdcache.cli.main import run
from kdcache.store.verify import verify_store
from tests.faults.test_dump_faults import one_error
from tests.faults.test_shared_dump import VIEWS, dump, wait_for_blocks
from tests.integration.distill_setup import ROOT, finish
from tests.integration.small_world import World, make_world
from tests.store_cases import store_bytes

pytest.importorskip("distributed", reason="the extra dask is not installed")
Captured = pytest.CaptureFixture[str]
ELSEWHERE = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH": "0"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Data, teachers and the store of the slow teacher that one process makes."""
    world = make_world(tmp_path_factory.mktemp("world"))
    with pytest.MonkeyPatch.context() as calm:
        calm.setenv("KDCACHE_TEST_CALM", "1")
        assert run([*world.dump("slow", out=str(world.folder / "straight.zarr")), *VIEWS, "-q"]) == 0
    return world


@contextmanager
def process(folder: Path, *words: str, name: str, inside: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the cluster; it is ended at the end. `inside` is a command that runs another one."""
    with (folder / f"{name}.log").open("wb") as log:
        started = subprocess.Popen(
            [*inside, sys.executable, "-m", *words],
            cwd=folder,
            env={**os.environ, **ELSEWHERE},
            stdout=log,
            stderr=log,
        )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


class Cluster:
    """A scheduler and workers, each a process; workers have no nanny, so that a kill is a kill."""

    def __init__(self, folder: Path, stack: ExitStack, *, host: str = "127.0.0.1") -> None:
        self.folder, self._stack = folder, stack
        self.workers: list[subprocess.Popen[bytes]] = []
        self.file = folder / "scheduler.json"
        words = ("distributed.cli.dask_scheduler", "--host", host, "--port", "0", "--no-dashboard")
        self.scheduler = stack.enter_context(
            process(folder, *words, "--scheduler-file", str(self.file), name="scheduler")
        )
        deadline = time.monotonic() + 600
        while not (self.file.exists() and self.file.read_text().endswith("}")) and time.monotonic() < deadline:
            time.sleep(0.05)  # it is there before it is written
        self.address = str(json.loads(self.file.read_text())["address"])

    def add_worker(self, *more: str, inside: Sequence[str] = ()) -> None:
        """Start one more worker, with more options, inside of another command."""
        number = len(self.workers)
        words = ("distributed.cli.dask_worker", self.address, "--no-nanny", "--nthreads", "1", "--no-dashboard")
        folder = self.folder / f"worker-{number}"  # not where the data is: paths must be absolute
        folder.mkdir()
        worker = process(folder, *words, "--death-timeout", "120", *more, name="worker", inside=inside)
        self.workers.append(self._stack.enter_context(worker))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster with one worker."""
    with ExitStack() as stack:
        cluster = Cluster(tmp_path, stack)
        cluster.add_worker()
        yield cluster


def test_a_worker_is_killed_another_joins_and_the_store_is_the_same(
    world: World, cluster: Cluster, tmp_path: Path
) -> None:
    store = tmp_path / "store.zarr"
    client = dump(world, store, "--dask", cluster.address)
    wait_for_blocks(client, store, 2)
    cluster.workers[0].kill()
    cluster.add_worker()
    result = json.loads(finish(client))
    assert result["rows_written"] == 4 * 700
    assert store_bytes(store) == store_bytes(world.folder / "straight.zarr")


@pytest.mark.slow
def test_a_lost_scheduler_is_one_error_and_the_dump_continues(
    world: World, cluster: Cluster, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store.zarr"
    client = dump(world, store, "--dask", cluster.address)
    wait_for_blocks(client, store, 2)
    cluster.scheduler.kill()
    _, err = client.communicate(timeout=120)
    assert client.returncode == 5
    one_error(err, "scheduler was lost", "continues")
    assert verify_store(store).exit_code == 3
    monkeypatch.setenv("KDCACHE_TEST_CALM", "1")
    capsys.readouterr()
    assert run([*world.dump("slow", out=str(store)), *VIEWS, "-q"]) == 0
    assert store_bytes(store) == store_bytes(world.folder / "straight.zarr")


@pytest.mark.slow
def test_a_killed_client_is_continued_on_the_same_cluster(world: World, cluster: Cluster, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    cluster.add_worker()
    client = dump(world, store, "--dask", cluster.address)
    wait_for_blocks(client, store, 2)
    client.send_signal(signal.SIGKILL)
    client.communicate()
    result = json.loads(finish(dump(world, store, "--dask", cluster.address)))
    assert result["rows_written"] < 4 * 700
    assert store_bytes(store) == store_bytes(world.folder / "straight.zarr")
    assert all(worker.poll() is None for worker in cluster.workers)


@pytest.mark.slow
def test_ctrl_c_of_the_client_is_obeyed_at_once_and_the_dump_continues(
    world: World, cluster: Cluster, tmp_path: Path
) -> None:
    """It does not wait for the workers, which end when they find it gone; the cluster lives on."""
    store = tmp_path / "store.zarr"
    client = dump(world, store, "--dask", cluster.address)
    wait_for_blocks(client, store, 2)
    client.send_signal(signal.SIGINT)
    _, err = client.communicate(timeout=300)
    assert client.returncode == 130
    assert "interrupted\n  next: to continue where it stopped: kdcache dump-teacher" in err
    assert "Traceback" not in err
    assert not (store / ".kdcache" / "lease.json").exists()
    result = json.loads(finish(dump(world, store, "--dask", cluster.address)))
    assert result["rows_written"] < 4 * 700
    assert store_bytes(store) == store_bytes(world.folder / "straight.zarr")


def test_a_scheduler_that_does_not_answer_is_one_error(
    world: World, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdcache.parallel.dask_cluster.CONNECT_SECONDS", 1)
    assert run([*world.dump(out=str(tmp_path / "s")), "--dask", "tcp://127.0.0.1:1"]) == 5
    one_error(capsys.readouterr().err, "no Dask scheduler answers", "dask scheduler")
    assert not (tmp_path / "s").exists()
