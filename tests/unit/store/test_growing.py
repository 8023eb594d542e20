"""A store watched while it is written: no block before its commit, a clear end when nobody writes, the sealed bytes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from kdcache.errors import (
    ChecksumError,
    ConfigError,
    IncompatibleError,
    NotFoundError,
    UnfinishedStoreError,
)
from kdcache.specs import StoreManifest
from kdcache.store import growing
from kdcache.store.blocks import block_at
from kdcache.store.growing import GrowingStore, find_growing
from kdcache.store.info import describe
from kdcache.store.layout import layout_of
from kdcache.store.ledger import has_record
from kdcache.store.reader import open_reader
from kdcache.store.writer import StoreWriter
from tests.remote_servers import web_server
from tests.store_cases import columns_of, manifest_of, write_store

MANIFEST = manifest_of(rows=700, classes=20, views=3)  # 3 blocks a view


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "LOOK_SECONDS", 0.01)


def followed(path: Path, *, timeout: float = 0.0) -> GrowingStore:
    found = find_growing(path, timeout=timeout)
    assert found is not None
    return found


def write(path: Path, manifest: StoreManifest = MANIFEST, *, pause: float = 0.0, seed: int = 0) -> None:
    """Write what is missing and seal."""
    with StoreWriter.open(path, manifest) as writer:
        for block in writer.pending:
            time.sleep(pause)
            writer.write_block(block, columns_of(manifest, block, seed=seed))
        time.sleep(pause)
        writer.seal()


def test_a_view_is_handed_out_when_its_last_block_is_committed(tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    writing = threading.Thread(target=write, args=(path,), kwargs={"pause": 0.05})
    writing.start()
    store = followed(path, timeout=30.0)
    reader, digests = store.reader(), []
    for view in range(3):
        store.wait_for_view(view)
        assert all(has_record(path, block) or store.sealed for block, _ in reader.blocks(view))
        columns = reader.view(view)  # every block compared with the ledger
        digests.append(reader.view_digest(view))
        assert columns.topk_index.shape == (700, 5)
    sealed = store.wait_for_seal()
    writing.join()
    assert sealed.manifest.complete
    assert digests == [sealed.view_digest(view) for view in range(3)]
    assert np.array_equal(reader.labels, sealed.labels)


def test_a_sealed_store_is_not_followed(tmp_path: Path) -> None:
    write_store(tmp_path / "s", MANIFEST)
    assert find_growing(tmp_path / "s", timeout=0) is None


def test_nobody_writing_is_an_error_after_the_timeout(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s"
    with pytest.raises(UnfinishedStoreError, match="a store to appear"):
        find_growing(path, timeout=0)
    write_store(path, MANIFEST, blocks=4)
    store = followed(path, timeout=0.2)
    store.wait_for_view(0)
    started = time.monotonic()
    with pytest.raises(UnfinishedStoreError, match=r"view 1 of 3, but nobody .* 4 of 9 blocks") as caught:
        store.wait_for_view(1)
    assert 0.2 <= time.monotonic() - started < 5
    assert "dump-teacher" in caught.value.hint
    assert "waiting for view 1" in capfd.readouterr().err


def test_a_writer_that_seals_and_leaves_between_two_looks_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    write_store(path, MANIFEST, blocks=4)
    store = followed(path, timeout=0.0)
    monkeypatch.setattr(store._watch, "writer", lambda: write(path))  # None: nobody writes any more
    store.wait_for_view(2)
    assert store.wait_for_seal().manifest.complete


def test_a_living_writer_is_waited_for_however_long(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with StoreWriter.open(path, MANIFEST) as writer:
        store = followed(path, timeout=0.0)
        waiting = threading.Thread(target=store.wait_for_view, args=(0,))
        waiting.start()
        for block in writer.pending[:3]:
            time.sleep(0.1)
            assert waiting.is_alive()
            writer.write_block(block, columns_of(MANIFEST, block))
        waiting.join(10)
        assert not waiting.is_alive()


def test_a_dump_that_is_continued_is_followed_on(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_store(path, MANIFEST, blocks=4)
    store = followed(path, timeout=30.0)
    later = threading.Timer(0.2, write, args=(path,))
    later.start()
    store.wait_for_view(2)
    store.reader().view(2)
    later.join()


def test_damage_is_repaired_by_the_writer_or_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    write_store(path, MANIFEST, blocks=4)
    chunk = path / layout_of(MANIFEST)["tail"].block_chunk_path(0, 1)
    chunk.write_bytes(bytes(len(chunk.read_bytes())))
    store = followed(path)
    reader = store.reader()
    with pytest.raises(ChecksumError) as caught:
        reader.view(0)
    with pytest.raises(ChecksumError):  # nobody writes: nobody will repair it
        store.wait_for_repair(0, caught.value, 1)
    with StoreWriter.open(path, MANIFEST) as writer:  # finds the bad block and asks for it again
        assert writer.pending[0] == block_at(MANIFEST, 0, 1)
        monkeypatch.setattr(growing, "LONGEST_LOOK_SECONDS", 0.01)
        store.wait_for_repair(0, caught.value, 1)
        writer.write_block(writer.pending[0], columns_of(MANIFEST, writer.pending[0]))
        store.wait_for_view(0)
        assert np.array_equal(reader.view(0).tail, open_reader(path, allow_unfinished=True).view(0).tail)


def test_other_bytes_have_another_digest(tmp_path: Path) -> None:
    digests = []
    for seed in (0, 1):
        write_store(tmp_path / str(seed), MANIFEST, seed=seed, blocks=3)
        store = followed(tmp_path / str(seed))
        store.wait_for_view(0)
        digests.append(store.reader().view_digest(0))
    assert digests[0] != digests[1]


def test_views_of_an_earlier_sealing_are_there_at_once(tmp_path: Path) -> None:
    path, one = tmp_path / "s", manifest_of(rows=700, classes=20, views=1)
    write_store(path, one)
    before = open_reader(path).view_digest(0)
    with StoreWriter.open(path, MANIFEST) as writer:
        assert len(writer.pending) == 6
        store = followed(path)
        store.wait_for_view(0)
        reader = store.reader()
        reader.view(0)
        assert reader.view_digest(0) == before
        assert not reader.has_view(1)
        assert describe(path)["progress"]["committed"] == 3
        assert describe(path)["progress"]["views"] == 1
        writer.write_block(writer.pending[0], columns_of(MANIFEST, writer.pending[0]))
        assert store.progress() == "4 of 9 blocks are committed"


def test_what_is_not_this_store_any_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_store(path, MANIFEST, blocks=4)
    store = followed(path)
    write_store(path, manifest_of(rows=700, classes=20, views=4), blocks=1)
    with pytest.raises(IncompatibleError, match="4 views now"):
        store.wait_for_view(2)
    (path / "zarr.json").unlink()
    with pytest.raises((IncompatibleError, NotFoundError)):
        store.wait_for_view(2)


def test_places_that_do_not_grow_in_sight_are_refused(tmp_path: Path) -> None:
    with web_server(tmp_path) as url, pytest.raises(ConfigError, match="expected a folder to follow"):
        find_growing(f"{url}/store", timeout=0)
    derived = manifest_of(rows=700, classes=20).__class__(
        **{**vars(MANIFEST), "creator": {"command": "derive"}}  # as `derive` states it
    )
    write_store(tmp_path / "d", derived, blocks=1)
    with pytest.raises(IncompatibleError, match="kdcache derive is writing"):
        find_growing(tmp_path / "d", timeout=0)
