"""A catalogue: a folder or bucket prefix of immutable stores with one small JSON file for each. No server, no index.

    CATALOG/entries/KEY-DIGEST.json   what a store is and where, written once and never changed
    CATALOG/stores/NAME.zarr/         the stores
    CATALOG/claims/KEY.json           who is dumping what is not there yet (`dump_claims`)
    CATALOG/index.json                a list of entries for web servers, which cannot list folders; made by `build`

An entry helps to find a store and proves nothing: whoever uses the store reads its own manifest. Entries may come from
strangers, so they are parsed strictly and name stores inside the catalogue only.
"""

from __future__ import annotations

import getpass
import json
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.canonical import canonical_json, from_json, to_json
from kdcache.errors import ConfigError, CorruptStoreError, IncompatibleError, KdcacheError, NotFoundError
from kdcache.progress import note
from kdcache.specs import PRECISIONS, Precision, StoreManifest, finer_or_equal
from kdcache.store.location import Location
from kdcache.store.names import readable_name
from kdcache.urls import clean_url

CATALOG_FORMAT = 1
ENTRIES, STORES, INDEX = "entries", "stores", "index.json"
MAX_ENTRY = 64 * 2**10
MAX_INDEX = 64 * 2**20
READERS = 8
_ENTRY_NAME = re.compile(rf"{ENTRIES}/([0-9a-f]{{16}})-([0-9a-f]{{16}})\.json")
_HEX = re.compile(r"[0-9a-f]{64}")
_STORE_NAME = re.compile(rf"{STORES}/[A-Za-z0-9._+-]{{1,200}}")


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """What the catalogue says about one sealed store.

    Attributes:
        format: version of this description.
        store: the store's place under the catalogue, `stores/NAME`.
        root_digest, store_key: of the store.
        dataset, split, rows, classes: the data asked about.
        teacher, weights, numeric_mode: who answered.
        views, policy: number V of views and the policy that made them.
        topk, precision, fields: what is kept.
        bytes: size of the store's files.
        top1, nll: the teacher against the labels (nll in nats), where measured.
        parents: stores this one was made from.
        added, by: when (UTC, ISO 8601) and by whom.
    """

    format: int
    store: str
    root_digest: str
    store_key: str
    dataset: str
    split: str
    rows: int
    classes: int
    teacher: str
    weights: str
    numeric_mode: str
    views: int
    policy: str
    topk: int
    precision: str
    fields: tuple[str, ...]
    bytes: int
    top1: float | None
    nll: float | None
    parents: tuple[Mapping[str, Any], ...]
    added: str
    by: str

    @property
    def name(self) -> str:
        """`KEY-DIGEST`, 16 hex characters of each: the name of the entry's file."""
        return f"{self.store_key[:16]}-{self.root_digest[:16]}"

    def covers(
        self,
        key: str,
        *,
        topk: int,
        num_views: int,
        fields: Iterable[str] = (),
        precision: Precision = "compact",
    ) -> bool:
        """Whether the store can serve a request, as `specs.covers` decides from a manifest."""
        return (
            self.store_key == key
            and self.topk >= topk
            and self.views >= num_views
            and set(fields) <= set(self.fields)
            and self.precision in PRECISIONS
            and finer_or_equal(self.precision, precision)
        )


class Catalog:
    """The stores a team shares, at a path or URL; nothing is requested before it is asked for.

    Attributes:
        location: where the catalogue is.
    """

    def __init__(self, place: str | Path | Location) -> None:
        self.location = Location.at(place)

    def __str__(self) -> str:
        return str(self.location)

    def entries(self, *, key: str = "") -> list[CatalogEntry]:
        """The entries, newest first; of one store key when given. One list request, then one request an entry.

        What cannot be read is told and passed over: one bad entry must not hide the others.
        """
        if self.location.read_only:
            return sorted(self._indexed(key), key=lambda entry: entry.added, reverse=True)
        names = [item.name for item in self.location.list(ENTRIES)]
        wanted = [
            name for name in names if (match := _ENTRY_NAME.fullmatch(name)) and key.startswith(match[1][: len(key)])
        ]
        with ThreadPoolExecutor(max_workers=READERS) as pool:
            found = [entry for entry in pool.map(self._read_or_tell, wanted) if entry is not None]
        return sorted(found, key=lambda entry: entry.added, reverse=True)

    def serving(
        self,
        key: str,
        *,
        topk: int,
        num_views: int,
        fields: Iterable[str] = (),
        precision: Precision = "compact",
    ) -> list[CatalogEntry]:
        """The stores that serve a request, the smallest first."""
        able = [
            entry
            for entry in self.entries(key=key)
            if entry.covers(key, topk=topk, num_views=num_views, fields=fields, precision=precision)
        ]
        return sorted(able, key=lambda entry: (entry.bytes, entry.name))

    def entry(self, name: str) -> CatalogEntry:
        """The entry that a person names: by its name, store, digest or key, or the beginning of one that is unique.

        Raises:
            NotFoundError: there is none. ConfigError: there are several.
        """
        found = [entry for entry in self.entries() if any(word.startswith(name) for word in _words(entry))]
        exact = [entry for entry in found if name in _words(entry)]
        found = exact or found
        if not name or not found:
            raise NotFoundError(f"{self}: no store {name!r}", hint=f"kdcache catalog list --catalog {self}")
        if len(found) > 1:
            named = ", ".join(entry.name for entry in found)
            raise ConfigError(f"{self}: {name!r} names {len(found)} stores: {named}", hint="give more of the name")
        return found[0]

    def place_of(self, entry: CatalogEntry) -> Location:
        """Where an entry's store is, under the catalogue."""
        return self.location / entry.store

    def register(self, manifest: StoreManifest, store: str, *, size: int) -> CatalogEntry:
        """Write the entry of a sealed store that lies under the catalogue; the same store twice is one entry.

        Args:
            manifest: the store's.
            store: `stores/NAME`.
            size: bytes of its files.

        Raises:
            IncompatibleError: the store is not sealed. ConfigError: a name outside the catalogue, or a web server.
        """
        if not manifest.complete:
            raise IncompatibleError(f"{store}: not sealed; expected a finished store", hint="finish the dump first")
        self.location.require_writable()
        entry = entry_of(manifest, store, size=size)
        if not self.location.put_new(f"{ENTRIES}/{entry.name}.json", canonical_json(to_json(entry)).encode()):
            return self._read(f"{ENTRIES}/{entry.name}.json")
        return entry

    def remove(self, entry: CatalogEntry, *, with_store: bool) -> int:
        """Take an entry out, and with it its store when asked; returns how many files went."""
        self.location.require_writable()
        self.location.delete(f"{ENTRIES}/{entry.name}.json")
        if not with_store:
            return 1
        names = [item.name for item in self.location.list(entry.store)]
        first = f"{entry.store}/zarr.json"  # without its root file it is no store: nobody reads half of one
        self.location.delete(*[name for name in names if name == first])
        self.location.delete(*[name for name in names if name != first])
        return 1 + len(names)

    def write_index(self) -> list[CatalogEntry]:
        """Write `index.json` from the entries that are there now, for web servers; returns them."""
        entries = self.entries()
        document = {"kdcache_catalog": CATALOG_FORMAT, "entries": to_json(entries)}
        self.location.put(INDEX, json.dumps(document, indent=1).encode())
        return entries

    def _indexed(self, key: str) -> Iterator[CatalogEntry]:
        try:
            document = json.loads(self.location.get(INDEX, limit=MAX_INDEX))
            items = document["entries"]
        except NotFoundError:
            raise NotFoundError(
                f"{self}: a web server cannot list, and there is no {INDEX}", hint="kdcache catalog build writes one"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptStoreError(f"{self}: {INDEX} is not a list of entries ({error})") from error
        for i, item in enumerate(items if isinstance(items, list) else []):
            try:
                entry = parse_entry(item, where=f"{self}/{INDEX}[{i}]")
            except KdcacheError as error:
                note(f"passed over: {error.message}")
                continue
            if entry.store_key.startswith(key):
                yield entry

    def _read(self, name: str) -> CatalogEntry:
        where = f"{self}/{name}"
        try:
            value = json.loads(self.location.get(name, limit=MAX_ENTRY))
        except ValueError as error:
            raise CorruptStoreError(f"{where}: not JSON ({error})") from error
        return parse_entry(value, where=where)

    def _read_or_tell(self, name: str) -> CatalogEntry | None:
        try:
            entry = self._read(name)
            if name != f"{ENTRIES}/{entry.name}.json":
                raise CorruptStoreError(f"{self}/{name}: describes {entry.name}, another store")
            return entry
        except NotFoundError:
            return None  # removed since it was listed
        except KdcacheError as error:
            note(f"passed over: {error.message}")
            return None


def entry_of(manifest: StoreManifest, store: str, *, size: int) -> CatalogEntry:
    """The entry of a sealed store. No path, no URL and no credential of the machine that made it goes in."""
    if not _STORE_NAME.fullmatch(store):
        raise ConfigError(f"{store!r}: expected a store directly under {STORES}/ of the catalogue")
    data, teacher, codec, quality = manifest.dataset, manifest.teacher, manifest.codec, manifest.quality
    return CatalogEntry(
        format=CATALOG_FORMAT,
        store=store,
        root_digest=manifest.root_digest,
        store_key=manifest.store_key,
        dataset=data.name,
        split=data.split,
        rows=data.num_rows,
        classes=data.num_classes,
        teacher=clean_url(teacher.source),
        weights=clean_url(teacher.weights).rsplit("/", 1)[-1],
        numeric_mode=teacher.numeric_mode,
        views=manifest.num_views,
        policy=manifest.views.policy,
        topk=codec.topk,
        precision=codec.precision,
        fields=codec.fields,
        bytes=size,
        top1=quality.get("top1"),
        nll=quality.get("nll"),
        parents=manifest.parents,
        added=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        by=who_am_i(),
    )


def who_am_i() -> str:
    """`user@host`, as far as the machine tells."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container without a user entry
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def parse_entry(value: Any, *, where: str) -> CatalogEntry:
    """Read and check an entry.

    Raises:
        IncompatibleError: a newer format. CorruptStoreError: anything else that is not an entry.
    """
    if isinstance(value, dict) and isinstance(value.get("format"), int) and value["format"] > CATALOG_FORMAT:
        raise IncompatibleError(
            f"{where}: entry format {value['format']}, this kdcache reads up to {CATALOG_FORMAT}",
            hint="pip install --upgrade kdcache",
        )
    entry = from_json(CatalogEntry, value, where=where)
    if not (_HEX.fullmatch(entry.root_digest) and _HEX.fullmatch(entry.store_key)):
        raise CorruptStoreError(f"{where}: store_key and root_digest must be 64 hex characters")
    if not _STORE_NAME.fullmatch(entry.store) or entry.store.endswith(("/.", "/..")):
        raise CorruptStoreError(f"{where}: store {entry.store!r:.80} is not directly under {STORES}/ of the catalogue")
    return entry


def store_name(manifest: StoreManifest) -> str:
    """`stores/DATA-SPLIT_TEACHER_topK_vV_KEY.zarr`: what a store is called in a catalogue."""
    topk, views = manifest.codec.topk, manifest.num_views
    name = readable_name(manifest.dataset, manifest.teacher, manifest.store_key, topk=topk, num_views=views)
    return f"{STORES}/{name}"


def _words(entry: CatalogEntry) -> tuple[str, ...]:
    return (entry.name, entry.store, entry.store.split("/")[-1], entry.root_digest, entry.store_key)
