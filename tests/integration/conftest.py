"""A sealed store, and the same one on a real S3 API, for the tests of remote stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcache.store.transfer import push_store
from tests.remote_servers import Proxy
from tests.store_cases import manifest_of, write_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three views of 1000 rows in 4 blocks, with a store-level array."""
    path = tmp_path_factory.mktemp("made") / "store.zarr"
    manifest = manifest_of(views=3, classes=40, fields=("class_weight",), shapes={"class_weight": [40, 6]})
    write_store(path, manifest, quality={"top1": 0.5, "nll": 1.0})
    return path


@pytest.fixture
def pushed(store: Path, s3_url: str, s3_proxy: Proxy) -> str:
    """The store on S3; the requests of pushing it are forgotten."""
    push_store(str(store), s3_url)
    s3_proxy.requests.clear()
    return s3_url
