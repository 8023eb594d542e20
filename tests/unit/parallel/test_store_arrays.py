"""dask views of a store: the numbers of the reader, chunks that are blocks, nothing read early, nothing unverified."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kdcache
from kdcache.errors import ChecksumError, CorruptStoreError, IncompatibleError
from kdcache.parallel import store_arrays
from kdcache.parallel.store_arrays import to_dask
from kdcache.store.reader import StoreReader, open_reader
from tests.logit_store import random_logits, write_logit_store

da = pytest.importorskip("dask.array", reason="the extra dask is not installed")
ROWS, K, TOPK = 700, 12, 4  # three blocks of 256 rows


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    first, labels = random_logits(ROWS, K)
    mask = (np.arange(ROWS) % 5 > 0).astype(np.uint8)
    path = tmp_path_factory.mktemp("arrays") / "store"
    return write_logit_store(path, [first, first * 2], labels, topk=TOPK, mask=mask)


def test_arrays_are_what_the_reader_reads_and_chunks_are_blocks(store: Path) -> None:
    arrays, reader = to_dask(store), open_reader(store)
    assert arrays.index.chunks == ((1, 1), (256, 256, 188), (TOPK,))
    assert arrays.label.chunks == ((256, 256, 188),)
    for view in range(2):
        columns = reader.view(view)
        assert np.array_equal(arrays.index[view].compute(), columns.topk_index)
        assert np.array_equal(arrays.log_prob[view].compute(), columns.topk_log_prob)
        assert np.array_equal(arrays.tail[view].compute(), columns.tail)
        assert np.array_equal(arrays.label_log_prob[view].compute(), columns.label_log_prob)
    assert np.array_equal(arrays.label.compute(), reader.row_array("label"))
    assert np.array_equal(arrays.row_digest.compute(), reader.row_digests)
    assert set(arrays.more) == {"mask"}
    assert np.array_equal(arrays.more["mask"].compute(), reader.row_array("mask"))
    for array in (arrays.index, arrays.log_prob, arrays.tail, arrays.label, arrays.row_digest):
        assert array.compute().dtype == array.dtype
        assert array.compute().shape == array.shape


def test_an_open_store_a_path_and_a_public_name_are_the_same(store: Path) -> None:
    assert kdcache.to_dask is to_dask
    assert to_dask(open_reader(store)).index.name == to_dask(str(store)).index.name


def test_nothing_is_read_before_it_is_computed_and_a_block_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int]] = []
    real = StoreReader.block

    def block(self: StoreReader, view: int, number: int) -> dict[str, np.ndarray]:
        read.append((view, number))
        return real(self, view, number)

    monkeypatch.setattr(StoreReader, "block", block)
    arrays = to_dask(store)
    right = (arrays.index[:, :256, 0] == arrays.label[None, :256]).mean()
    sure = arrays.log_prob[:, :256, 0].astype("float32").mean()
    assert read == []
    da.compute(right, sure, scheduler="sync")
    assert sorted(read) == [(0, 0), (1, 0)], "the label comes with block 0 of view 0"


def test_a_damaged_block_is_an_error_that_names_it(tmp_path: Path) -> None:
    logits, labels = random_logits(600, K)
    path = write_logit_store(tmp_path / "s", [logits], labels, topk=TOPK)
    arrays = to_dask(path)
    first, second = path / "tail" / "c" / "0" / "0" / "0", path / "tail" / "c" / "0" / "1" / "0"
    second.write_bytes(first.read_bytes())  # sound bytes at the wrong place: the chunk's own checksum passes
    assert len(arrays.tail[0, :256].compute()) == 256
    with pytest.raises((ChecksumError, CorruptStoreError), match=r"view 0 block 1 \(rows 256"):
        arrays.label.compute()


def test_a_store_that_was_replaced_is_refused(tmp_path: Path) -> None:
    logits, labels = random_logits(300, K)
    arrays = to_dask(write_logit_store(tmp_path / "s", [logits], labels, topk=TOPK))
    (tmp_path / "s").rename(tmp_path / "old")
    write_logit_store(tmp_path / "s", [logits * 2], labels, topk=TOPK)
    store_arrays._opened.cache_clear()
    with pytest.raises(IncompatibleError, match="replaced since"):
        arrays.index.compute()
