"""`push` and its lease: a reader sees a whole store or none, a second writer is told, and any fault can be continued.

Against a real S3 API behind a proxy that injects faults.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kdcache.errors import (
    ConfigError,
    CorruptStoreError,
    IncompatibleError,
    LockedError,
    NotFoundError,
    RemoteError,
)
from kdcache.store.location import Location
from kdcache.store.reader import open_reader
from kdcache.store.remote_lease import LEASE_NAME, RemoteLease
from kdcache.store.transfer import pull_whole, push_store
from kdcache.store.verify import verify_store
from tests.remote_servers import Fault, Proxy, Request
from tests.store_cases import manifest_of, store_bytes, write_store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kdcache"


def test_push_publishes_an_equal_store_and_leaves_nothing_else(pushed: str, store: Path) -> None:
    place = Location.at(pushed)
    assert {entry.name: place.get(entry.name) for entry in place.list()} == store_bytes(store)


def test_readers_see_nothing_before_the_manifest_which_comes_last(store: Path, s3_url: str, s3_proxy: Proxy) -> None:
    seen = []

    def look(request: Request) -> None:
        if request.method == "PUT" and "remote-lease" not in request.path:
            seen.append(request.path.split("/", 2)[-1])

    s3_proxy.before = look
    push_store(str(store), s3_url)
    assert seen[-1].endswith("/zarr.json")
    assert sum(path.endswith(f"{s3_url.rsplit('/', 1)[1]}/zarr.json") for path in seen) == 1


def test_an_interrupted_push_continues(store: Path, s3_url: str, s3_proxy: Proxy) -> None:
    s3_proxy.faults = [Fault("403", lambda request: "/tail/c/2/1" in request.path)]
    with pytest.raises(RemoteError):
        push_store(str(store), s3_url)
    with pytest.raises(NotFoundError):
        open_reader(s3_url)
    s3_proxy.requests.clear()
    done = push_store(str(store), s3_url)
    assert not done.already
    chunks = [request for request in s3_proxy.requests if request.method == "PUT" and "/c/" in request.path]
    assert len(chunks) < 12 * 4
    assert verify_store(s3_url).exit_code == 0
    again = push_store(str(store), s3_url)
    assert (again.already, again.bytes_moved) == (True, 0)


@pytest.mark.parametrize("kind", ["500", "503", "lost", "late", "truncated"])
def test_no_fault_loses_anything(
    store: Path, s3_url: str, s3_proxy: Proxy, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_REMOTE_TIMEOUT", "1" if kind == "late" else "5")
    monkeypatch.setenv("KDCACHE_REMOTE_ATTEMPTS", "8")
    served = {"n": 0}

    def every_seventh(request: Request) -> bool:
        served["n"] += 1
        return served["n"] % 7 == 0

    s3_proxy.faults = [Fault(kind, every_seventh, times=4 if kind == "late" else 20, seconds=1.5)]
    push_store(str(store), s3_url)
    pull_whole(s3_url, tmp_path / "pulled")
    assert store_bytes(tmp_path / "pulled") == store_bytes(store)


def test_a_stale_listing_costs_work_and_nothing_else(store: Path, s3_url: str, s3_proxy: Proxy) -> None:
    s3_proxy.faults = [Fault("403", lambda request: "/tail/c/2/1" in request.path)]
    with pytest.raises(RemoteError):
        push_store(str(store), s3_url)
    s3_proxy.faults = [Fault("stale", lambda request: "list-type" in request.path, times=100)]
    push_store(str(store), s3_url)
    assert s3_proxy.faults[0].times < 100
    s3_proxy.faults = []
    assert verify_store(s3_url).exit_code == 0


def test_a_lost_reply_to_the_manifest_is_no_conflict(store: Path, s3_url: str, s3_proxy: Proxy) -> None:
    name = f"{s3_url.removeprefix('s3:/')}/zarr.json"
    s3_proxy.faults = [Fault("lost", lambda request: request.method == "PUT" and request.path == name)]
    push_store(str(store), s3_url)
    assert s3_proxy.faults[0].times == 0
    assert open_reader(s3_url).manifest.complete


def test_pushing_over_another_store_is_refused_with_what_is_there(pushed: str, tmp_path: Path) -> None:
    write_store(tmp_path / "other", manifest_of(teacher="another-teacher"))
    with pytest.raises(IncompatibleError, match=r"numbers \(train\), test-teacher, top 5, 3 views"):
        push_store(str(tmp_path / "other"), pushed)
    assert verify_store(pushed).exit_code == 0


def test_pushing_among_other_things_is_refused(store: Path, s3_url: str) -> None:
    Location.at(s3_url).put("notes.txt", b"ours")
    with pytest.raises(IncompatibleError, match=r"notes\.txt"):
        push_store(str(store), s3_url)


def test_a_damaged_store_is_not_published(store: Path, s3_url: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    file = copy / "tail/c/1/2/0"
    file.write_bytes((copy / "tail/c/1/1/0").read_bytes())
    with pytest.raises(CorruptStoreError):
        push_store(str(copy), s3_url)
    assert Location.at(s3_url).size("zarr.json") is None


def test_the_race_of_two_stores_to_one_place_has_one_winner(store: Path, s3_url: str, s3_proxy: Proxy) -> None:
    """Another store appears between looking and publishing: its manifest stays."""
    name = f"{s3_url.removeprefix('s3:/')}/zarr.json"
    other = json.loads((store / "zarr.json").read_text())
    other["attributes"]["kdcache"]["creator"] = {"who": "the other one"}

    def slip_in(request: Request) -> None:
        if request.method == "PUT" and request.path == name:
            s3_proxy.before = None
            other["attributes"]["kdcache"]["root_digest"] = "f" * 64
            Location.at(s3_url).put("zarr.json", json.dumps(other).encode())

    s3_proxy.before = slip_in
    with pytest.raises(IncompatibleError, match="never changes"):
        push_store(str(store), s3_url)
    assert json.loads(Location.at(s3_url).get("zarr.json")) == other


def test_push_to_a_folder_and_to_memory(store: Path, tmp_path: Path) -> None:
    for target in (str(tmp_path / "shared" / "s.zarr"), f"file://{tmp_path}/again", "memory://team/s"):
        push_store(str(store), target)
        assert verify_store(target).exit_code == 0
        assert push_store(str(store), target).already
    assert store_bytes(tmp_path / "shared" / "s.zarr") == store_bytes(store) == store_bytes(tmp_path / "again")
    assert not (tmp_path / "again" / ".kdcache").exists()


def test_a_push_to_a_folder_that_was_killed_within_a_file_continues(store: Path, tmp_path: Path) -> None:
    target = tmp_path / "shared.zarr"
    push_store(str(store), str(target))
    (target / "zarr.json").unlink()
    half = target / "tail" / "c" / "0" / "0" / f"0.{'5e' * 16}.partial"  # SIGKILL before the rename
    half.write_bytes(b"half")
    push_store(str(store), str(target))
    assert store_bytes(target) == store_bytes(store)
    assert not half.exists()


def test_a_strangers_unfinished_file_is_no_leftover_of_ours(store: Path, tmp_path: Path) -> None:
    mine = tmp_path / "downloads" / "film.partial"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    with pytest.raises(IncompatibleError, match=r"film\.partial"):
        push_store(str(store), str(mine.parent))
    assert mine.read_bytes() == b"mine"


def test_a_web_server_cannot_be_pushed_to(store: Path) -> None:
    with pytest.raises(ConfigError, match="only read"):
        push_store(str(store), "http://127.0.0.1:9/x")


# leases


def test_a_second_writer_is_told_who_is_at_it(store: Path, s3_url: str) -> None:
    with (
        RemoteLease.acquire(Location.at(s3_url)) as lease,
        pytest.raises(LockedError, match=rf"process {lease.holder.pid} on {lease.holder.host} since 20"),
    ):
        push_store(str(store), s3_url)
    push_store(str(store), s3_url)


def test_a_silent_writer_elsewhere_is_replaced_with_a_message(
    store: Path, s3_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Location.at(s3_url)
    lease = RemoteLease.acquire(place)
    value = json.loads(place.get(LEASE_NAME))
    place.put(LEASE_NAME, json.dumps({**value, "host": "elsewhere", "pid": 7}).encode())
    with pytest.raises(LockedError, match="process 7 on elsewhere"):
        RemoteLease.acquire(place)
    with RemoteLease.acquire(place, stale_seconds=-1) as second:
        assert "took over from process 7 on elsewhere" in capsys.readouterr().err
        lease.beat()
        with pytest.raises(LockedError, match="lost its lease"):
            lease.check()
        lease.release()
        second.beat()
        second.check()
        assert [entry.name for entry in place.list()] == [LEASE_NAME]
    assert list(place.list()) == []
