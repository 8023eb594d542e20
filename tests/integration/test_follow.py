"""`distill --follow` in real processes: the result is that of the same command on the sealed store, file by file."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from kdcache.cli.main import run
from kdcache.store.manifest_file import read_manifest
from kdcache.store.writer import StoreWriter
from tests.faults.test_dump_faults import one_error
from tests.faults.test_shared_dump import VIEWS, wait_for_blocks
from tests.integration.distill_setup import finish, start
from tests.integration.small_world import World, make_world

Captured = pytest.CaptureFixture[str]
METHOD = ("--method", "kd-topk", "--seed", "3")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Data and teachers; the slow one takes 0.15 s a batch."""
    return make_world(tmp_path)


def distill(world: World, store: Path, out: str, *more: str, epochs: int = 5) -> list[str]:
    words = world.distill(*METHOD, *more, "--out", str(world.folder / out), store=str(store))
    return [*words, "--epochs", str(epochs)]


def outcome(folder: Path) -> dict[str, Any]:
    """Everything a run leaves that does not depend on when and where it ran."""
    found: dict[str, Any] = {"files": sorted(p.name for p in folder.iterdir() if not p.name.startswith("tensorboard"))}
    for name in ("config", "result", "last", "best"):
        document = json.loads((folder / f"{name}.json").read_text())
        for inside in (document, document.get("figures", {})):
            for key in ("seconds", "out"):
                inside.pop(key, None)
        found[name] = document
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found["metrics"] = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
    for name in ("last", "best"):
        tensors = safetensors.numpy.load_file(folder / f"{name}.safetensors")
        found[f"{name} weights"] = {key: value.tobytes() for key, value in tensors.items()}
    return found


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.02)


def test_a_followed_run_is_the_run_over_the_sealed_store(world: World) -> None:
    """The student begins before there is a store, has done an epoch before the dump is done, and ends the same."""
    store = world.folder / "store.zarr"
    followed = start(world.folder, "-m", "kdcache", *distill(world, store, "followed", "--follow"), "--json")
    dump = start(world.folder, "-m", "kdcache", *world.dump("slow", out=str(store)), *VIEWS, "--json")
    wait_for(world.folder / "followed" / "state" / "epoch-00001.json", followed)
    assert not read_manifest(store).complete
    assert dump.poll() is None
    assert json.loads((world.folder / "followed" / "config.json").read_text())["store_root_digest"] == ""
    finish(dump)
    finish(followed)
    assert run([*distill(world, store, "plain"), "-q"]) == 0
    assert outcome(world.folder / "followed") == outcome(world.folder / "plain")


def test_a_dump_that_stopped_is_said_and_the_run_is_continued(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """The dump ends in its second view; so does the run, with one error. Both continue; the student is the same."""
    store, folder = world.folder / "store.zarr", world.folder / "followed"
    dump = [*world.dump("tired", out=str(store)), *VIEWS, "--batch-size", "64", "-q"]  # 12 batches a view, probe too
    assert run(dump) != 0
    capsys.readouterr()
    assert run([*distill(world, store, "followed"), "-q"]) == 3  # nobody follows
    words = [*distill(world, store, "followed", "--follow", "--follow-timeout", "0"), "-q"]
    capsys.readouterr()
    assert run(words) == 3
    one_error(capsys.readouterr().err, "waited for view 1", "nobody has written", "--resume")
    assert sorted(json.loads((folder / "followed.json").read_text())) == ["0"]
    assert (folder / "state" / "epoch-00001.json").exists()
    monkeypatch.setenv("KDCACHE_TEST_CALM", "1")
    assert run(dump) == 0
    kept = (folder / "followed.json").read_text()
    (folder / "followed.json").write_text(json.dumps({"0": "0" * 64}))
    capsys.readouterr()
    assert run([*words, "--resume"]) == 3
    one_error(capsys.readouterr().err, "view 0 was written again with other bytes")
    (folder / "followed.json").write_text(kept)
    assert run([*words, "--resume"]) == 0
    assert run([*distill(world, store, "plain"), "-q"]) == 0
    assert outcome(folder) == outcome(world.folder / "plain")
    capsys.readouterr()
    assert run([*words, "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reused"]


def test_a_store_being_written_names_follow(world: World, capsys: Captured) -> None:
    store = world.folder / "store.zarr"
    assert run([*world.dump("tired", out=str(store)), *VIEWS, "--batch-size", "64", "-q"]) != 0
    with StoreWriter.open(store, read_manifest(store)):
        capsys.readouterr()
        assert run([*distill(world, store, "run"), "-q"]) == 3
        one_error(capsys.readouterr().err, "is writing it", "--follow")
        assert run(["info", str(store)]) == 0
        assert "(1 of 4 views whole), being written by process" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kd", "kd-pt+sim", "mlkd", "ce"])
def test_kills_of_both_processes_change_nothing(world: World, method: str) -> None:
    """The dump is killed in view 1 and given again; the student is killed after its first epoch and resumed."""
    store, folder = world.folder / "store.zarr", world.folder / "followed"
    words = [*distill(world, store, "followed", "--follow", "--method", method, epochs=6), "--json"]
    dump_words = ["-m", "kdcache", *world.dump("slow", out=str(store)), *VIEWS, "--json"]
    dump = start(world.folder, *dump_words)
    followed = start(world.folder, "-m", "kdcache", *words)
    wait_for_blocks(dump, store, 4)
    dump.kill()
    dump.communicate()
    if method != "mlkd":  # it needs views 0 and 1 for its first epoch
        wait_for(folder / "state" / "epoch-00001.json", followed)
    else:
        wait_for(folder / "followed.json", followed)
    followed.send_signal(signal.SIGKILL)
    followed.communicate()
    dump = start(world.folder, *dump_words)
    finish(start(world.folder, "-m", "kdcache", *words, "--resume"))
    finish(dump)
    assert run([*distill(world, store, "plain", "--method", method, epochs=6), "-q"]) == 0
    assert outcome(folder) == outcome(world.folder / "plain")
