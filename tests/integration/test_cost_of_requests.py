"""The cost model's requests against those a real S3 API receives; a proxy in front of it counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kdcache.cost_model import store_size
from kdcache.cost_of_use import (
    Requests,
    open_requests,
    pull_requests,
    push_requests,
    verify_requests,
    view_requests,
)
from kdcache.specs import StoreManifest
from kdcache.store.location import Location
from kdcache.store.reader import open_reader
from kdcache.store.transfer import pull_whole, push_store
from kdcache.store.verify import verify_store
from tests.remote_servers import Proxy
from tests.store_cases import manifest_of, write_store

STORES = {
    "one view": manifest_of(rows=600, classes=30, topk=3),
    "views": manifest_of(rows=1000, classes=40, views=3, fields=("class_weight",), shapes={"class_weight": [40, 6]}),
    "recorded views": manifest_of(rows=520, classes=9, views=5, fields=("view_params",), shapes={"view_params": [3]}),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "cache"))


def counted(proxy: Proxy, action: Callable[[], object]) -> Requests:
    """What one call sent, by kind; S3 lists with GET and deletes many with POST."""
    proxy.requests.clear()
    action()
    kinds: Counter[str] = Counter()
    for request in proxy.requests:
        listing = "list-type" in request.path
        kinds["list" if listing else "delete" if request.method == "POST" else request.method.lower()] += 1
    return Requests(**kinds)


def _again(url: str, view: int) -> None:
    open_reader(url).view(view)


@pytest.mark.parametrize("name", STORES)
def test_requests_are_what_the_model_says(name: str, tmp_path: Path, s3_url: str, s3_proxy: Proxy) -> None:
    manifest: StoreManifest = STORES[name]
    sealed = write_store(tmp_path / "s", manifest)
    size = store_size(sealed)
    assert counted(s3_proxy, lambda: push_store(str(tmp_path / "s"), s3_url)) == push_requests(sealed, size)
    assert len(list(Location.at(s3_url).list())) == size.objects
    assert counted(s3_proxy, lambda: open_reader(s3_url)) == open_requests()
    reader = open_reader(s3_url)
    for view in range(sealed.num_views):
        assert counted(s3_proxy, partial(reader.view, view)) == view_requests(sealed, view)
        assert counted(s3_proxy, partial(_again, s3_url, view)) == open_requests()
    assert counted(s3_proxy, lambda: verify_store(s3_url)) == verify_requests(sealed, size)
    assert counted(s3_proxy, lambda: pull_whole(s3_url, tmp_path / "pulled")) == pull_requests(sealed, size)
