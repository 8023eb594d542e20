"""The catalogue on real places: a folder and an object store in memory; entries, lookups, claims, hostile entries."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kdcache.canonical import to_json
from kdcache.errors import (
    ConfigError,
    CorruptStoreError,
    HostileStoreError,
    IncompatibleError,
    LockedError,
    NotFoundError,
)
from kdcache.specs import StoreManifest, with_changes
from kdcache.store.catalog import Catalog, entry_of, parse_entry, store_name
from kdcache.store.dump_claims import claim
from kdcache.store.manifest_file import read_manifest
from tests.small_store import small_source, write_small_store


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> StoreManifest:
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    write_small_store(path, small_source(60), topk=3)
    return read_manifest(path)


@pytest.fixture(params=["folder", "memory"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Catalog:
    if request.param == "folder":
        return Catalog(tmp_path / "team")
    pytest.importorskip("obstore", reason="the extra s3 is not installed")
    return Catalog(f"memory://{tmp_path.name}/team")


def test_an_empty_place_is_an_empty_catalogue(catalog: Catalog) -> None:
    assert catalog.entries() == []
    assert catalog.serving("0" * 64, topk=1, num_views=1) == []
    with pytest.raises(NotFoundError, match="no store 'x'"):
        catalog.entry("x")


def test_what_is_registered_is_found_by_what_it_covers(catalog: Catalog, manifest: StoreManifest) -> None:
    entry = catalog.register(manifest, store_name(manifest), size=1000)
    assert catalog.entries() == [entry]
    key = manifest.store_key
    assert catalog.serving(key, topk=3, num_views=1) == [entry]
    assert catalog.serving(key, topk=2, num_views=1, fields=("class_weight",)) == [entry]
    assert catalog.serving(key, topk=4, num_views=1) == []
    assert catalog.serving(key, topk=3, num_views=2) == []
    assert catalog.serving(key, topk=3, num_views=1, fields=("view_params",)) == []
    assert catalog.serving("0" * 64, topk=3, num_views=1) == []
    assert manifest.codec.precision == "default"
    assert catalog.serving(key, topk=3, num_views=1, precision="compact") == [entry]
    assert catalog.serving(key, topk=3, num_views=1, precision="exact") == []


def test_the_smallest_covering_store_is_chosen(catalog: Catalog, manifest: StoreManifest) -> None:
    larger = with_changes(manifest, root_digest="f" * 64)
    large = catalog.register(larger, "stores/large.zarr", size=5000)
    small = catalog.register(manifest, "stores/small.zarr", size=1000)
    assert catalog.serving(manifest.store_key, topk=1, num_views=1) == [small, large]


def test_registering_twice_is_one_entry(catalog: Catalog, manifest: StoreManifest) -> None:
    first = catalog.register(manifest, store_name(manifest), size=1000)
    assert catalog.register(manifest, store_name(manifest), size=1000) == first
    assert len(catalog.entries()) == 1
    with pytest.raises(IncompatibleError, match="not sealed"):
        catalog.register(with_changes(manifest, complete=False), "stores/x", size=1)


def test_a_store_has_several_names(catalog: Catalog, manifest: StoreManifest) -> None:
    entry = catalog.register(manifest, store_name(manifest), size=1000)
    other = catalog.register(with_changes(manifest, root_digest="f" * 64), "stores/other.zarr", size=1)
    for name in (entry.name, entry.store, entry.root_digest[:10], entry.store.removeprefix("stores/")):
        assert catalog.entry(name) == entry
    assert catalog.entry("other") == other
    with pytest.raises(ConfigError, match="names 2 stores"):
        catalog.entry(manifest.store_key[:8])


def test_removing_takes_the_entry_and_only_when_asked_the_store(catalog: Catalog, manifest: StoreManifest) -> None:
    entry = catalog.register(manifest, "stores/a.zarr", size=1000)
    other = catalog.register(with_changes(manifest, root_digest="f" * 64), "stores/a.zarr2", size=1)
    for store in ("stores/a.zarr", "stores/a.zarr2"):
        catalog.location.put(f"{store}/zarr.json", b"{}")
        catalog.location.put(f"{store}/label/c/0", b"x")
    assert catalog.remove(entry, with_store=False) == 1
    assert catalog.location.size("stores/a.zarr/zarr.json") == 2
    entry = catalog.register(manifest, "stores/a.zarr", size=1000)
    assert catalog.remove(entry, with_store=True) == 3
    assert catalog.entries() == [other]
    assert catalog.location.size("stores/a.zarr/label/c/0") is None
    assert catalog.location.size("stores/a.zarr2/label/c/0") == 1, "another store's name begins with this one's"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"store": "../../etc"}, CorruptStoreError),
        ({"store": "stores/.."}, CorruptStoreError),
        ({"store": "stores/../../x"}, CorruptStoreError),
        ({"store": "/etc/passwd"}, CorruptStoreError),
        ({"store": "s3://other/bucket"}, CorruptStoreError),
        ({"root_digest": "x"}, CorruptStoreError),
        ({"topk": "3"}, CorruptStoreError),
        ({"surprise": 1}, CorruptStoreError),
        ({"format": 2}, IncompatibleError),
    ],
)
def test_entries_of_strangers_are_refused_and_passed_over(
    catalog: Catalog, manifest: StoreManifest, change: dict[str, Any], error: type[Exception]
) -> None:
    good = catalog.register(with_changes(manifest, root_digest="e" * 64), "stores/good", size=1)
    bad = {**to_json(entry_of(manifest, "stores/x", size=1)), **change}
    with pytest.raises(error):
        parse_entry(bad, where="entry")
    name = f"entries/{manifest.store_key[:16]}-{manifest.root_digest[:16]}.json"
    catalog.location.put(name, json.dumps(bad).encode())
    assert catalog.entries() == [good]


def test_an_entry_under_another_stores_name_is_passed_over(catalog: Catalog, manifest: StoreManifest) -> None:
    entry = entry_of(manifest, "stores/x", size=1)
    catalog.location.put(f"entries/{'0' * 16}-{'1' * 16}.json", json.dumps(to_json(entry)).encode())
    assert catalog.entries() == []


def test_a_place_outside_the_catalogue_cannot_be_named(catalog: Catalog) -> None:
    with pytest.raises(HostileStoreError):
        catalog.location / "../outside"


def test_the_index_holds_what_the_entries_hold(catalog: Catalog, manifest: StoreManifest) -> None:
    entry = catalog.register(manifest, store_name(manifest), size=1000)
    assert catalog.write_index() == [entry]
    document = json.loads(catalog.location.get("index.json"))
    assert [parse_entry(item, where="index") for item in document["entries"]] == [entry]


def test_the_second_claimant_is_told_who_is_first(catalog: Catalog) -> None:
    with claim(catalog, "k" * 64, what="cifar100 by resnet20") or pytest.fail("no claim"):
        with pytest.raises(LockedError, match=r"@.* \(process \d+, since 20.*\) is dumping cifar100 by resnet20"):
            claim(catalog, "k" * 64, what="the same")
        assert claim(catalog, "j" * 64, what="another") is not None
    assert claim(catalog, "k" * 64, what="again") is not None, "a claim given back is free"


def test_a_claimant_that_waits_gets_the_claim_or_the_store(catalog: Catalog) -> None:
    first = claim(catalog, "k" * 64, what="x", beat_seconds=0.05)
    assert first is not None
    with first:
        done = threading.Event()
        found: list[Any] = []
        second = threading.Thread(
            target=lambda: found.append(
                claim(catalog, "k" * 64, what="y", wait=True, settled=done.is_set, stale_seconds=2)
            )
        )
        second.start()
        time.sleep(0.2)
        assert not found
        done.set()
        second.join(timeout=30)
        assert found == [None]


def test_a_silent_claim_is_taken_over_and_a_beating_one_is_not(catalog: Catalog) -> None:
    silent = claim(catalog, "k" * 64, what="x", beat_seconds=0.1)
    assert silent is not None
    time.sleep(1.2)
    taken = claim(catalog, "k" * 64, what="y", stale_seconds=1.0, beat_seconds=0.1)
    assert taken is not None
    with taken:
        time.sleep(1.3)
        with pytest.raises(LockedError):
            claim(catalog, "k" * 64, what="z", stale_seconds=1.0)
    with silent:
        pass  # it notices that it lost, and leaves the other's claim alone
    assert claim(catalog, "k" * 64, what="z") is not None
