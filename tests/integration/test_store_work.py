"""`verify` and `push` by several workers, on the command line: what one process says, word by word and byte by byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kdcache.cli.main import run
from kdcache.errors import ChecksumError
from kdcache.store.transfer import push_store
from kdcache.store.verify import verify_store
from kdcache.workers.store_work import push, verify
from kdcache.workers.tasks import Workforce
from tests.faults.test_dump_faults import one_error
from tests.logit_store import random_logits, write_logit_store
from tests.store_cases import store_bytes

Captured = pytest.CaptureFixture[str]
TWO = Workforce(workers=2)


@pytest.fixture
def damaged(store: Path, tmp_path: Path) -> Path:
    """Two chunks swapped, one cut short, one gone."""
    path = tmp_path / "damaged"
    shutil.copytree(store, path)
    one, other = path / "tail/c/1/0/0", path / "tail/c/1/1/0"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    chunk = path / "topk_index/c/0/2/0"
    chunk.write_bytes(chunk.read_bytes()[:-7])
    (path / "label_log_prob/c/2/3").unlink()
    return path


def test_workers_name_the_same_bad_blocks_in_the_same_order(damaged: Path, store: Path, capsys: Captured) -> None:
    alone = verify_store(damaged, deep=True)
    assert [(item.view, item.block) for item in alone.problems] == [(0, 2), (1, 0), (1, 1), (2, 3)]
    assert verify(damaged, deep=True, force=TWO) == alone
    assert run(["verify", str(store), "--workers", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["blocks_checked"] == 12


def test_statistics_and_new_stores_by_processes_are_those_of_one(tmp_path: Path, capsys: Captured) -> None:
    """`stats`, `derive` and `merge` on the command line: every figure and every byte."""
    first, labels = random_logits(700, 12)
    views = [first, first + random_logits(700, 12, seed=3)[0]]
    write_logit_store(tmp_path / "a", views, labels, topk=5)
    write_logit_store(tmp_path / "b", [view * 1.5 for view in views], labels, topk=4, source="other")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    told = []
    for count in ("1", "2"):
        capsys.readouterr()
        assert run(["stats", a, "--workers", count, "--json", "-q"]) == 0
        figures = json.loads(capsys.readouterr().out)
        told.append({name: value for name, value in figures.items() if name not in ("seconds", "rows_per_second")})
        part, mean = str(tmp_path / f"part-{count}"), str(tmp_path / f"mean-{count}")
        small = ["--topk", "3", "--rows", "100:650", "--class-mean", "2"]
        assert run(["derive", a, part, *small, "--workers", count, "-q"]) == 0
        assert run(["merge", a, b, "--out", mean, "--workers", count, "-q"]) == 0
    assert told[0] == told[1]
    assert store_bytes(tmp_path / "part-1") == store_bytes(tmp_path / "part-2")
    assert store_bytes(tmp_path / "mean-1") == store_bytes(tmp_path / "mean-2")


def test_workers_in_two_ways_are_refused(store: Path, tmp_path: Path, capsys: Captured) -> None:
    two = ("--workers", "2", "--dask", "tcp://127.0.0.1:1")
    out = str(tmp_path / "out")
    for words in (
        ["verify", str(store)],
        ["stats", str(store)],
        ["derive", str(store), out],
        ["merge", str(store), out, "--out", out],
        ["join", str(store), out, "--out", out],
        ["push", str(store), out],
    ):
        assert run([*words, *two]) == 2
        one_error(capsys.readouterr().err, "--workers 2 and --dask tcp://127.0.0.1:1 exclude each other")
    assert not (tmp_path / "out").exists()


def test_a_push_by_several_threads_is_the_same_store_and_publishes_no_damage(
    store: Path, damaged: Path, s3_url: str, tmp_path: Path
) -> None:
    done = push(str(store), s3_url, force=TWO)
    assert push_store(str(store), s3_url).already
    assert verify_store(s3_url).exit_code == 0
    push(str(store), str(tmp_path / "copy"), force=TWO)
    assert store_bytes(tmp_path / "copy") == store_bytes(store)
    manifest = (store / "zarr.json").stat().st_size  # of the publication, not of what is moved
    assert done.bytes_moved == sum(map(len, store_bytes(store).values())) - manifest
    (damaged / "topk_index/c/0/2/0").write_bytes((store / "topk_index/c/0/2/0").read_bytes())
    with pytest.raises(ChecksumError, match="view 1 block 0"):
        push(str(damaged), str(tmp_path / "none"), force=TWO)
    assert not (tmp_path / "none" / "zarr.json").exists()
    push(str(store), str(tmp_path / "none"), force=TWO)
    assert store_bytes(tmp_path / "none") == store_bytes(store)
