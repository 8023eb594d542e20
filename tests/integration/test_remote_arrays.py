"""`to_dask` of stores at a URL: the arrays of the local store, and only the blocks that are computed travel, once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kdcache
from kdcache.errors import ChecksumError, CorruptStoreError, NotFoundError
from kdcache.parallel import store_arrays
from kdcache.parallel.store_arrays import to_dask
from kdcache.store.location import Location
from tests.remote_servers import Proxy, web_server

dask = pytest.importorskip("dask", reason="the extra dask is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "cache"))
    store_arrays._opened.cache_clear()  # a process that opened the same store earlier has its copy elsewhere
    return tmp_path / "cache"


def test_arrays_at_a_url_are_those_of_the_folder_and_a_block_travels_once(
    pushed: str, store: Path, s3_proxy: Proxy, cache: Path
) -> None:
    s3_proxy.requests.clear()
    far, near = to_dask(pushed), to_dask(store)
    assert len(s3_proxy.requests) == 2, "manifest and ledger"
    assert not cache.exists()
    one = far.index[1, 256:512]  # block 1 of view 1
    assert np.array_equal(one.compute(), near.index[1, 256:512].compute())
    chunks = [request.path for request in s3_proxy.requests if "/c/1/1" in request.path]
    assert len(chunks) == len(s3_proxy.requests) - 4 == 4, "the arrays of one block, and manifest and ledger again"
    s3_proxy.requests.clear()
    one.compute()
    assert not s3_proxy.requests
    for name in ("index", "log_prob", "tail", "label_log_prob", "label", "row_digest"):
        here, there = dask.compute(getattr(near, name), getattr(far, name))
        assert np.array_equal(here, there, equal_nan=here.dtype.kind == "f"), name
    assert to_dask(kdcache.open_store(pushed)).index.name == far.index.name, "an open store is known by its URL"


def test_a_damaged_object_is_an_error_that_names_the_url(pushed: str) -> None:
    arrays, place = to_dask(pushed), Location.at(pushed)
    first = place.get("tail/c/0/0/0", limit=2**20)
    place.put("tail/c/0/1/0", first)  # sound bytes of another block: the chunk's own checksum passes
    assert len(arrays.tail[0, :256].compute()) == 256
    with pytest.raises((ChecksumError, CorruptStoreError), match=r"view 0 block 1 \(rows 256") as caught:
        arrays.tail.compute()
    assert pushed in caught.value.message
    assert caught.value.hint == f"kdcache verify {pushed}"


def test_a_web_server_serves_arrays_and_a_missing_store_is_said(store: Path) -> None:
    with web_server(store.parent) as server:
        arrays = to_dask(f"{server}/{store.name}")
        right = (arrays.index[..., 0] == arrays.label).sum(axis=1)
        near = to_dask(store)
        expected = (near.index[..., 0] == near.label).sum(axis=1)
        assert np.array_equal(right.compute(), expected.compute())
        with pytest.raises(NotFoundError):
            to_dask(f"{server}/none")
