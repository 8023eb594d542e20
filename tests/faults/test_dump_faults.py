"""What a dump leaves behind when the disk, the permissions or the teacher fail: it continues to the same bits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from kdcache.cli.main import run
from kdcache.errors import ResourceError
from kdcache.store.verify import verify_store
from tests.integration.distill_setup import finish, start
from tests.integration.small_world import TRAIN_ROWS, World, make_world
from tests.store_cases import manifest_of, store_bytes, write_store

Captured = pytest.CaptureFixture[str]
BLOCK_ROWS = 256  # of a store of TRAIN_ROWS rows
NOBODY = 65_534


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Data, teachers and a straight, sealed store of the good teacher."""
    world = make_world(tmp_path_factory.mktemp("world"))
    assert run([*world.dump(out=str(world.folder / "straight.zarr")), "-q"]) == 0
    return world


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path_factory.mktemp("disk")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter (pytest's own are private)."""
    folder = Path(tempfile.mkdtemp(prefix="kdcache-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def without_privileges() -> Iterator[None]:
    """Let permissions hold: root becomes nobody for a while."""
    privileged = os.geteuid() == 0
    if privileged:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if privileged:
            os.seteuid(0)


def fill_disk(disk: Path, *, leave: int) -> Path:
    """A file that leaves so many bytes free."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        file.write(b"-" * (shutil.disk_usage(disk).free - leave))
    return ballast


def one_error(err: str, *found: str) -> None:
    """One error with a next step and no traceback."""
    assert [line for line in err.splitlines() if line.startswith("error: ")], err
    assert err.count("error: ") == 1, err
    assert "  next: " in err, err
    assert "Traceback" not in err
    for text in found:
        assert text in err, err


def is_unfinished_or_nothing(store: Path) -> bool:
    """Nothing claims to be sealed, and what is committed is sound."""
    if not (store / "zarr.json").exists():
        return True
    report = verify_store(store)
    return report.exit_code == 3 and not report.complete


@pytest.mark.parametrize("leave_kib", [0, 8, 24, 40, 64, 88, 104, 128])
def test_a_full_disk_leaves_a_store_that_continues(small_disk: Path, tmp_path: Path, leave_kib: int) -> None:
    manifest = manifest_of(rows=1200, views=2, classes=40)
    store = small_disk / "store"
    ballast = fill_disk(small_disk, leave=leave_kib * 1024)
    with pytest.raises(ResourceError, match="o space") as caught:
        write_store(store, manifest)
    assert "same command again" in caught.value.hint
    assert is_unfinished_or_nothing(store)
    assert not list(store.rglob("lease.json"))
    ballast.unlink()
    sealed = write_store(store, manifest)
    assert sealed.root_digest == write_store(tmp_path / "straight", manifest).root_digest
    assert store_bytes(store) == store_bytes(tmp_path / "straight")
    shutil.rmtree(store)


def test_a_full_disk_under_the_command(small_disk: Path, world: World, capsys: Captured) -> None:
    store = small_disk / "dumped"
    ballast = fill_disk(small_disk, leave=96 * 1024)
    capsys.readouterr()
    assert run(world.dump(out=str(store))) == 6
    one_error(capsys.readouterr().err, "o space", "same command again")
    assert is_unfinished_or_nothing(store)
    ballast.unlink()
    assert run([*world.dump(out=str(store)), "-q"]) == 0
    assert verify_store(store).root_digest == verify_store(world.folder / "straight.zarr").root_digest
    shutil.rmtree(store)


LIMITED = manifest_of(rows=20_000, classes=40)
UNDER_LIMIT = """
import resource, sys
from pathlib import Path
from kdcache.errors import KdcacheError
from tests.faults.test_dump_faults import LIMITED, write_store
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_store(Path(sys.argv[1]), LIMITED)
except KdcacheError as error:
    print(error.exit_code, error.message)
"""


def test_a_file_size_limit_is_a_want_of_space(tmp_path: Path) -> None:
    store = tmp_path / "store"
    out = finish(start(tmp_path, "-c", UNDER_LIMIT, str(store)))
    assert out.startswith("6 ")
    assert "File too large" in out
    assert is_unfinished_or_nothing(store)
    assert write_store(store, LIMITED).complete
    assert verify_store(store, deep=True).exit_code == 0


def test_a_folder_that_may_not_be_written(open_folder: Path) -> None:
    manifest = manifest_of(rows=300, classes=40)
    open_folder.chmod(0o555)
    with without_privileges(), pytest.raises(ResourceError, match="ermission") as caught:
        write_store(open_folder / "store", manifest)
    open_folder.chmod(0o755)
    assert caught.value.exit_code == 6
    assert "permissions" in caught.value.hint
    assert not list(open_folder.iterdir())


def test_a_store_that_may_not_be_read_or_continued(open_folder: Path, capsys: Captured) -> None:
    manifest = manifest_of(rows=1200, classes=40)
    store = open_folder / "store"
    write_store(store, manifest, blocks=2)
    before = store_bytes(store)
    (store / "zarr.json").chmod(0)
    with without_privileges():
        for name in ("verify", "info"):
            capsys.readouterr()
            assert run([name, str(store)]) == 6
            one_error(capsys.readouterr().err, "ermission", "store")
        with pytest.raises(ResourceError, match="ermission"):
            write_store(store, manifest)
    (store / "zarr.json").chmod(0o644)
    assert store_bytes(store) == before
    assert write_store(store, manifest).complete


def test_a_file_on_the_way_to_the_store(world: World, tmp_path: Path, capsys: Captured) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for words in (world.dump(out=str(taken / "store.zarr")), ["verify", str(taken)], ["info", str(taken)]):
        capsys.readouterr()
        assert run(words) == 3
        one_error(capsys.readouterr().err, "taken")
    assert taken.read_text() == "mine"


def test_an_exception_in_the_teacher_never_seals_and_the_dump_continues(
    world: World, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, straight = tmp_path / "store.zarr", tmp_path / "straight.zarr"
    process = start(tmp_path, "-m", "kdcache", *world.dump("tired", out=str(store)))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    one_error(err, "the teacher is tired", "same command continues")
    report = verify_store(store)
    assert report.exit_code == 3
    assert 0 < report.blocks_checked < report.blocks_total
    assert run(world.distill(store=str(store))) == 3
    one_error(capsys.readouterr().err, "dump-teacher", str(store), "it continues")
    monkeypatch.setenv("KDCACHE_TEST_CALM", "1")
    assert run([*world.dump("tired", out=str(store)), "-q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows_written"] == TRAIN_ROWS - BLOCK_ROWS * report.blocks_checked
    assert run([*world.dump("tired", out=str(straight)), "-q"]) == 0
    assert store_bytes(store) == store_bytes(straight)


def test_repair_asks_the_teacher_for_the_bad_blocks_only(world: World, tmp_path: Path, capsys: Captured) -> None:
    store = Path(shutil.copytree(world.folder / "straight.zarr", tmp_path / "store.zarr"))
    before = store_bytes(store)
    for name in ("tail/c/0/1/0", "topk_index/c/0/1/0"):  # two arrays of one block
        damaged = np.frombuffer(before[name], dtype=np.uint8).copy()
        damaged[len(damaged) // 2] ^= 4
        (store / name).write_bytes(damaged.tobytes())
    assert verify_store(store).exit_code == 4
    assert run([*world.dump(out=str(store)), "-q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows_written"] == BLOCK_ROWS
    assert verify_store(store, deep=True).exit_code == 0
    assert store_bytes(store) == before
