"""Dumping straight to an S3 API: blocks go up while others are made, the manifest last, and anybody may continue.

The world (data, teachers, commands) is the one of the other integration tests; the bucket is a real server's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import kdcache
from kdcache.cli.main import run
from kdcache.store.ledger import LEDGER_FOLDER
from kdcache.store.location import Location
from kdcache.store.reader import open_reader
from kdcache.store.remote_lease import RemoteLease
from kdcache.store.verify import verify_store
from tests.integration.small_world import TRAIN_ROWS, World, make_world
from tests.remote_servers import Fault, Proxy, s3_environment

Captured = pytest.CaptureFixture[str]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def result(capsys: Captured) -> dict[str, object]:
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_a_dump_to_s3_is_the_store_that_a_local_dump_makes(
    world: World, s3_url: str, s3_proxy: Proxy, tmp_path: Path, capsys: Captured
) -> None:
    assert run([*world.dump(out=s3_url), "--json"]) == 0
    made = result(capsys)
    assert (made["store"], made["rows_written"]) == (s3_url, TRAIN_ROWS)
    assert run([*world.dump(out=str(tmp_path / "near.zarr")), "--json"]) == 0
    assert result(capsys)["root_digest"] == made["root_digest"]
    place = Location.at(s3_url)
    near = {str(path.relative_to(tmp_path / "near.zarr")) for path in (tmp_path / "near.zarr").rglob("*")}
    names = {entry.name for entry in place.list()}
    assert names == {name for name in near if (tmp_path / "near.zarr" / name).is_file()}
    assert verify_store(s3_url, deep=True).exit_code == 0

    s3_proxy.requests.clear()
    assert run([*world.dump("stopped", out=s3_url), "--json"]) != 0  # another teacher: refused, nothing is changed
    assert run([*world.dump(out=s3_url), "--json"]) == 0
    assert result(capsys)["reused"] is True
    assert not [request for request in s3_proxy.requests if request.method == "PUT"]


def test_students_train_from_the_url(world: World, s3_url: str, tmp_path: Path, capsys: Captured) -> None:
    assert run(world.dump(out=s3_url)) == 0
    capsys.readouterr()
    shutil.rmtree(tmp_path / "cache")  # another machine
    out = tmp_path / "run"
    words = world.distill("--student", "resnet8", "--method", "kd-topk", "--out", str(out), store=s3_url)
    assert run([*words, "--topk", "3", "--json"]) == 0
    assert json.loads((out / "result.json").read_text())["store"] == s3_url
    store = kdcache.open_store(s3_url)
    targets = store.targets([0, 5], view=0)
    assert np.array_equal(targets.index.numpy(), open_reader(s3_url).view(0).topk_index[[0, 5]])


def test_an_interrupted_dump_continues_here_and_elsewhere(
    world: World, s3_url: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tired` fails in the middle; what is committed at the URL is fetched, not computed."""
    assert run(world.dump("tired", out=s3_url)) != 0
    place = Location.at(s3_url)
    recorded = sorted(entry.name for entry in place.list(LEDGER_FOLDER))
    assert 0 < len(recorded) < 3
    assert place.size("zarr.json") is None
    assert run(["info", s3_url]) == 3
    shutil.rmtree(tmp_path / "cache")  # another machine
    monkeypatch.setenv("KDCACHE_TEST_CALM", "1")
    capsys.readouterr()
    assert run([*world.dump("tired", out=s3_url), "--json"]) == 0
    said = capsys.readouterr()
    assert f"{len(recorded)} blocks are there already" in said.err
    assert json.loads(said.out)["rows_written"] == TRAIN_ROWS - 256 * len(recorded)
    assert verify_store(s3_url, deep=True).exit_code == 0
    assert list(place.list(".kdcache")) == []


def test_a_block_damaged_at_the_url_is_computed_and_uploaded_again(
    world: World, s3_url: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(world.dump("tired", out=s3_url)) != 0
    place = Location.at(s3_url)
    name = next(entry.name for entry in place.list("tail/c"))
    place.put(name, b"not a chunk")
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setenv("KDCACHE_TEST_CALM", "1")
    assert run(world.dump("tired", out=s3_url)) == 0
    assert verify_store(s3_url, deep=True).exit_code == 0


def test_a_service_that_fails_costs_no_teacher_time(
    world: World, s3_url: str, s3_proxy: Proxy, capsys: Captured
) -> None:
    s3_proxy.faults = [Fault("403", lambda request: request.method == "PUT" and "/c/" in request.path, times=10_000)]
    assert run(world.dump(out=s3_url)) == 5
    assert "access refused" in capsys.readouterr().err
    assert Location.at(s3_url).size("zarr.json") is None
    s3_proxy.faults = []
    assert run([*world.dump(out=s3_url), "--json"]) == 0
    assert result(capsys)["rows_written"] == 0
    assert verify_store(s3_url).exit_code == 0


def test_a_second_dump_is_refused_with_who_is_at_it(world: World, s3_url: str, capsys: Captured) -> None:
    with RemoteLease.acquire(Location.at(s3_url)) as lease:
        assert run(world.dump(out=s3_url)) == 6
        assert f"process {lease.holder.pid} on {lease.holder.host} since" in capsys.readouterr().err


def test_a_killed_dump_is_taken_over_at_once_on_the_same_host(
    world: World, s3_url: str, s3_endpoint: str, tmp_path: Path, capsys: Captured
) -> None:
    environment = {**os.environ, **s3_environment(s3_endpoint), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = world.dump("slow", out=s3_url)
    process = subprocess.Popen(
        [sys.executable, "-m", "kdcache", *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    place = Location.at(s3_url)
    until = time.monotonic() + 120
    while not list(place.list(LEDGER_FOLDER)):
        assert process.poll() is None, "the dump ended before it was killed"
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run([*words, "--json"]) == 0
    said = capsys.readouterr()
    assert "took over from" in said.err
    assert json.loads(said.out)["rows_written"] < TRAIN_ROWS
    assert verify_store(s3_url).exit_code == 0
    assert list(place.list(".kdcache")) == []


def test_a_published_store_does_not_grow(world: World, s3_url: str, capsys: Captured) -> None:
    words = [*world.dump(out=s3_url), "--augment", "cifar", "--allow-weak-teacher"]
    assert run(words) == 0
    assert run([*words, "--views", "2"]) == 3
    assert "never changes" in capsys.readouterr().err


def test_no_credential_reaches_a_store_a_result_or_the_screen(
    world: World, s3_url: str, tmp_path: Path, capsys: Captured
) -> None:
    secret_url = s3_url.replace("s3://", "s3://user:hunter2pass@") + "?X-Amz-Signature=abc123def"
    assert run([*world.dump(out=secret_url)]) in (0, 3)
    said = capsys.readouterr()
    assert run(["info", secret_url, "--no-such-option"]) == 2
    again = capsys.readouterr()
    for text in (said.out, said.err, again.out, again.err):
        assert "hunter2pass" not in text
        assert "abc123def" not in text
    stored = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"hunter2pass" in data or b"wJalrXUtnTESTSECRET" in data for data in stored)
