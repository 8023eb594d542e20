"""Dumps on a Dask cluster whose network fails: a real link between two network namespaces that loses every packet.

Nothing is reset and no port is closed, as when a cable is pulled: both ends must find out by themselves. The disk is
shared all the time; the network between two machines can fail without their file server.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from kdcache.errors import RemoteError
from kdcache.parallel import dask_cluster
from kdcache.store.claims import CLAIMS_FOLDER
from kdcache.store.holder import read_holder
from kdcache.store.verify import verify_store
from tests.faults.test_dask_dump import Cluster
from tests.faults.test_dump_faults import one_error
from tests.faults.test_shared_dump import VIEWS, committed, wait_for_blocks
from tests.integration.distill_setup import finish, start
from tests.integration.small_world import Gate, World, make_world
from tests.store_cases import store_bytes

pytest.importorskip("distributed", reason="the extra dask is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # minutes, on a busy machine many
NOWHERE = "02:00:00:00:00:99"  # a hardware address that nobody has
PATIENCE = "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP"  # dask refuses less than 12 s


class Link:
    """A network namespace and the cable to it."""

    def __init__(self, number: int) -> None:
        self.namespace, self.device, self._far = f"kdc{number}", f"kdc{number}a", f"kdc{number}b"
        self.here, self.there = f"10.231.{number}.1", f"10.231.{number}.2"

    @property
    def inside(self) -> tuple[str, ...]:
        """What runs a command at the far end."""
        return ("ip", "netns", "exec", self.namespace)

    def cut(self) -> None:
        """Lose every packet, silently: both ends send to a hardware address that nobody has."""
        for words, address, device in self._ends():
            _ip(*words, "neigh", "replace", address, "lladdr", NOWHERE, "nud", "permanent", "dev", device)

    def mend(self) -> None:
        """Let packets through again."""
        for words, address, device in self._ends():
            _ip(*words, "neigh", "del", address, "dev", device)

    def _ends(self) -> tuple[tuple[tuple[str, ...], str, str], ...]:
        return ((), self.there, self.device), (("-n", self.namespace), self.here, self._far)

    def up(self) -> None:
        """Make the namespace, the cable and the addresses."""
        _ip("netns", "add", self.namespace)
        _ip("link", "add", self.device, "type", "veth", "peer", "name", self._far, "netns", self.namespace)
        _ip("addr", "add", f"{self.here}/24", "dev", self.device)
        _ip("link", "set", self.device, "up")
        _ip("-n", self.namespace, "addr", "add", f"{self.there}/24", "dev", self._far)
        _ip("-n", self.namespace, "link", "set", self._far, "up")
        _ip("-n", self.namespace, "link", "set", "lo", "up")

    def down(self) -> None:
        """Remove all of it."""
        subprocess.run(["ip", "link", "del", self.device], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", self.namespace], check=False, capture_output=True)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def link() -> Iterator[Link]:
    """A link; the test is skipped where namespaces cannot be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    link = Link(os.getpid() % 250)
    try:
        link.up()
    except OSError as error:
        link.down()
        pytest.skip(f"no network namespaces here: {error}")
    try:
        yield link
    finally:
        link.down()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Data and teachers, and the store of the gated one as a single process makes it."""
    world = make_world(tmp_path_factory.mktemp("world"))
    straight = world.dump("gated", out=str(world.folder / "straight.zarr"))
    finish(start(world.folder, "-m", "kdcache", *straight, *VIEWS, "-q"))
    return world


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Holds the dump of tmp_path/store.zarr at 2 of its 12 blocks, so that the cut comes in its middle."""
    gate = Gate(tmp_path / "gate", tmp_path / "store.zarr")
    gate.hold(2)
    monkeypatch.setenv("KDCACHE_TEST_GATE", str(gate.path))
    return gate


@contextmanager
def cluster_over(link: Link, folder: Path, monkeypatch: pytest.MonkeyPatch, *, patience: int = 15) -> Iterator[Cluster]:
    """A cluster with one worker, at this end of the link; dask gives a silent connection up after so many seconds."""
    monkeypatch.setenv(PATIENCE, f"{patience}s")
    with ExitStack() as stack:
        cluster = Cluster(folder, stack, host=link.here)
        cluster.add_worker("--host", link.here)
        yield cluster


ASKING = """
import sys, time
from kdcache.errors import RemoteError
from kdcache.parallel.dask_cluster import DaskCluster
cluster = DaskCluster(sys.argv[1], kept="kept", again="again")
print("connected", flush=True)
try:
    while True:
        print(len(cluster.workers()), flush=True)
        time.sleep(0.2)
except RemoteError as error:
    print(error.message, flush=True)
cluster.close()
print("closed", flush=True)
"""


def test_a_connection_that_goes_silent_is_one_error(link: Link, tmp_path: Path) -> None:
    """The client alone: answers, then none; it says so, closes, and leaves no traceback."""
    with ExitStack() as stack:
        scheduler = Cluster(tmp_path, stack, host=link.here)
        client = start(tmp_path, "-c", ASKING, scheduler.address, inside=link.inside, variables={PATIENCE: "15s"})
        assert client.stdout is not None
        lines = iter(client.stdout.readline, "")
        assert next(lines) == "connected\n"
        assert next(lines) == "0\n"
        link.cut()
        out, err = client.communicate(timeout=1500)
        *_, lost, closed = out.splitlines()
        assert "scheduler was lost; kept" in lost
        assert closed == "closed"
        assert client.returncode == 0
        assert "Traceback" not in err, err


def test_a_scheduler_that_is_slow_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped for a while, it is not lost; stopped for too long, it is."""
    monkeypatch.setattr(dask_cluster, "ANSWER_SECONDS", 2)
    with ExitStack() as stack:
        scheduler = Cluster(tmp_path, stack)
        dask = dask_cluster.DaskCluster(scheduler.address, kept="kept", again="again")
        scheduler.scheduler.send_signal(signal.SIGSTOP)
        assert dask.workers() == {}
        scheduler.scheduler.send_signal(signal.SIGCONT)
        assert dask.workers() == {}
        monkeypatch.setattr(dask_cluster, "LOST_SECONDS", 0)
        scheduler.scheduler.send_signal(signal.SIGSTOP)
        with pytest.raises(RemoteError, match="scheduler was lost; kept"):
            dask.workers()
        dask.close()


def dump_words(world: World, store: Path, cluster: Cluster) -> list[str]:
    words = world.dump("gated", out=str(store))
    return ["-m", "kdcache", *words, *VIEWS, "--json", "--dask", cluster.address]


def holders_of_claims(store: Path) -> set[int]:
    """Processes that hold a block now."""
    found = (read_holder(store, str(path.relative_to(store))) for path in (store / CLAIMS_FOLDER).glob("*.json"))
    return {holder.pid for holder in found if holder is not None}


def wait_until(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """While a process lives; pytest's own limit ends what never comes."""
    while not there():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def test_a_worker_that_nobody_reaches_loses_nothing(
    world: World, link: Link, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The far worker keeps the disk and loses the network: its blocks count, and the dump ends as it should."""
    with cluster_over(link, tmp_path, monkeypatch, patience=120) as cluster:
        cluster.add_worker("--host", link.there, inside=link.inside)
        near, far = cluster.workers
        client = start(world.folder, *dump_words(world, gate.store, cluster))
        wait_until(lambda: holders_of_claims(gate.store) == {near.pid, far.pid}, client)
        link.cut()
        near.send_signal(signal.SIGSTOP)  # so that whatever is committed now is the far worker's
        before = committed(gate.store)
        gate.open()
        wait_for_blocks(client, gate.store, before + 3)
        near.send_signal(signal.SIGCONT)
        assert json.loads(finish(client))["rows_written"] == 4 * 700
    assert store_bytes(gate.store) == store_bytes(world.folder / "straight.zarr")


def test_a_short_interruption_is_waited_out(
    world: World, link: Link, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is cut off for less than dask's patience: no error, the same store."""
    with cluster_over(link, tmp_path, monkeypatch, patience=120) as cluster:
        client = start(world.folder, *dump_words(world, gate.store, cluster), inside=link.inside)
        wait_for_blocks(client, gate.store, 2)
        link.cut()
        gate.hold(5)
        wait_for_blocks(client, gate.store, 5)  # the worker goes on meanwhile
        link.mend()
        gate.open()
        assert json.loads(finish(client))["rows_written"] == 4 * 700
    assert store_bytes(gate.store) == store_bytes(world.folder / "straight.zarr")


def test_a_client_that_is_cut_off_ends_with_one_error_and_is_continued(
    world: World, link: Link, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives the store free, the worker notices and lives on, and the same command from elsewhere ends the work."""
    with cluster_over(link, tmp_path, monkeypatch) as cluster:
        client = start(world.folder, *dump_words(world, gate.store, cluster), inside=link.inside)
        wait_for_blocks(client, gate.store, 2)
        link.cut()
        _, err = client.communicate(timeout=1500)
        assert client.returncode == 5, err
        one_error(err, "scheduler was lost", "continues")
        gate.open()
        report = verify_store(gate.store)
        assert (report.exit_code, report.problems) == (3, ())
        result = json.loads(finish(start(world.folder, *dump_words(world, gate.store, cluster))))
        assert result["rows_written"] < 4 * 700
        assert cluster.workers[0].poll() is None
    assert store_bytes(gate.store) == store_bytes(world.folder / "straight.zarr")
