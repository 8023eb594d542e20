"""The root zarr.json of a store: reading it with suspicion, replacing it atomically. No arrays, no zarr, no numcodecs.

This is all that `kdcache info` and a covering-store lookup need, and it loads in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcache.errors import ConfigError, CorruptStoreError, HostileStoreError, IncompatibleError, NotFoundError
from kdcache.specs import StoreManifest
from kdcache.store.files import MAX_ARRAY_JSON, MAX_ROOT_JSON, Root, as_store_errors, read_json, repair_hint, write_json
from kdcache.store.layout import FEATURE_TYPES, ArrayLayout, layout_of
from kdcache.store.location import Location
from kdcache.store.roots import root_of

ROOT_FILE = "zarr.json"
ATTRIBUTE = "kdcache"
_V2_FILES = (".zgroup", ".zarray", ".zattrs", ".zmetadata")
_MAKE_ONE = "kdcache dump-teacher makes a store; kdcache info STORE describes one"


def read_manifest(location: str | Path | Location) -> StoreManifest:
    """The manifest of a store, local or remote, checked against the schema; nothing else of the store is read.

    Raises:
        NotFoundError: there is nothing, or a file instead of a folder.
        IncompatibleError: a folder that is not a kdcache store, or a store of a newer format.
        CorruptStoreError: the manifest is damaged.
        HostileStoreError: Zarr v2 metadata, links, or sizes no store has.
        ResourceError: no permission. RemoteError: a service failed.
    """
    root = root_of(location)
    if not isinstance(root, Path):
        return _read_remote(root)
    with as_store_errors(root):
        if not root.exists():
            raise NotFoundError(f"{root}: no such store", hint=_MAKE_ONE)
        if not root.is_dir():
            raise NotFoundError(f"{root}: expected a store (a folder), found a file", hint=_MAKE_ONE)
    try:
        value = read_json(root, ROOT_FILE, limit=MAX_ROOT_JSON)
    except FileNotFoundError:
        _refuse_v2(root)
        raise IncompatibleError(
            f"{root}: expected a kdcache store, found a folder without {ROOT_FILE}", hint=_MAKE_ONE
        ) from None
    return parse_root(value, where=str(root))


def _read_remote(root: Root) -> StoreManifest:
    try:
        value = read_json(root, ROOT_FILE, limit=MAX_ROOT_JSON)
    except FileNotFoundError:
        raise NotFoundError(
            f"{root}: no such store (no {ROOT_FILE}); one that is still dumped or pushed appears when it is whole",
            hint=_MAKE_ONE,
        ) from None
    return parse_root(value, where=str(root))


def parse_root(value: Any, *, where: str) -> StoreManifest:
    """The manifest inside a parsed root zarr.json; errors as `read_manifest`."""
    if not isinstance(value, dict):
        raise CorruptStoreError(f"{where}: {ROOT_FILE} holds {type(value).__name__}, expected an object")
    if value.get("zarr_format") != 3:
        raise HostileStoreError(f"{where}: zarr_format {value.get('zarr_format')!r}; format 1 is Zarr 3 only")
    attributes = value.get("attributes")
    if value.get("node_type") != "group" or not isinstance(attributes, dict) or ATTRIBUTE not in attributes:
        raise IncompatibleError(
            f"{where}: a Zarr {value.get('node_type')!r:.20} without the attribute {ATTRIBUTE!r}: not a kdcache store",
            hint=_MAKE_ONE,
        )
    extra = sorted(set(attributes) - {ATTRIBUTE}) + sorted(set(value) - {"zarr_format", "node_type", "attributes"})
    if extra and not (extra == ["consolidated_metadata"] and value["consolidated_metadata"] is None):
        raise HostileStoreError(f"{where}: {ROOT_FILE} holds {extra[0]!r}, which format 1 does not have")
    manifest = StoreManifest.from_json(attributes[ATTRIBUTE], where=f"{where}: {ATTRIBUTE}")
    try:
        layout_of(manifest)
    except ConfigError as error:
        raise CorruptStoreError(f"{where}: {error.message}") from error
    return manifest


def root_json(manifest: StoreManifest) -> dict[str, Any]:
    """The root zarr.json of a store with this manifest."""
    return {"zarr_format": 3, "node_type": "group", "attributes": {ATTRIBUTE: manifest.to_json()}}


def write_manifest(root: Path, manifest: StoreManifest) -> None:
    """Replace the root zarr.json in one durable step; a reader sees the old manifest or the new one."""
    write_json(root / ROOT_FILE, root_json(manifest))


def group_folders(layout: Mapping[str, ArrayLayout]) -> tuple[str, ...]:
    """Groups below the root: "features" and "features32" when there are such arrays."""
    return tuple(prefix[:-1] for prefix in FEATURE_TYPES if any(name.startswith(prefix) for name in layout))


def check_metadata(root: Root, array: ArrayLayout) -> None:
    """Compare an array's zarr.json with what the manifest implies; nothing of it is used.

    Raises:
        CorruptStoreError: it is missing, not JSON or edited.
        HostileStoreError: it asks for something else than format 1: another codec, type, shape, grid or fill value.
    """
    path = f"{array.name}/{ROOT_FILE}"
    try:
        found = read_json(root, path, limit=MAX_ARRAY_JSON)
    except FileNotFoundError:
        raise CorruptStoreError(f"{root}: array {array.name!r} is missing ({path})", hint=repair_hint(root)) from None
    if not isinstance(found, dict):
        raise CorruptStoreError(f"{root / path}: expected an object, found {type(found).__name__}")
    expected = array.metadata()
    if found.get("storage_transformers") == []:
        found.pop("storage_transformers")
    found.setdefault("attributes", {})
    for key in sorted({*expected, *found}):
        if key not in found or key not in expected or not _same(found[key], expected[key]):
            raise HostileStoreError(
                f"{root / path}: {key} is {found.get(key)!r:.200}, expected {expected.get(key)!r} from the manifest",
                hint=repair_hint(root),
            )


def _same(found: Any, expected: Any) -> bool:
    """Equality of JSON values that keeps 1, 1.0 and true apart, as other Zarr readers do."""
    if type(found) is not type(expected):
        return False
    if isinstance(found, dict):
        return set(found) == set(expected) and all(_same(found[key], expected[key]) for key in found)
    if isinstance(found, list):
        return len(found) == len(expected) and all(_same(a, b) for a, b in zip(found, expected, strict=True))
    return bool(found == expected)


def _refuse_v2(root: Path) -> None:
    for name in _V2_FILES:
        if (root / name).exists():
            raise HostileStoreError(f"{root}: Zarr v2 metadata ({name}); format 1 is Zarr 3 only, v2 is refused")
