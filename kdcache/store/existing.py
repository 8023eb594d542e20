"""What is already at a place a store shall be written to: nothing, a store to continue, or something to leave alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from kdcache.canonical import to_json
from kdcache.errors import CorruptStoreError, HostileStoreError, IncompatibleError, NotFoundError, OtherRequestError
from kdcache.specs import StoreManifest
from kdcache.store import array_writer, ledger
from kdcache.store.block_reader import check_block, check_static, read_block, read_commit, read_static, stated_records
from kdcache.store.blocks import block_at
from kdcache.store.claims import claimed_places, place_of_partial, remove_dead_claims
from kdcache.store.files import (
    WORK_FOLDER,
    as_store_errors,
    make_folder,
    remove_partials,
    write_json,
)
from kdcache.store.layout import ArrayLayout, layout_of, static_arrays
from kdcache.store.manifest_file import ROOT_FILE, check_metadata, group_folders, read_manifest, write_manifest


@dataclass(frozen=True, kw_only=True)
class Existing:
    """What was found.

    Attributes:
        sealed: the sealed manifest when every byte of the store is sound, else None.
        records: committed blocks whose bytes were read back and match.
        static_digest: ledger digest of the store-level arrays on disk; "" when they must be written.
        quality: what the manifest found says was measured; a grown or repaired store keeps it.
    """

    sealed: StoreManifest | None = None
    records: Mapping[tuple[int, int], ledger.Record] = field(default_factory=dict)
    static_digest: str = ""
    quality: Mapping[str, Any] = field(default_factory=dict)


def check_place(root: Path, wanted: StoreManifest) -> StoreManifest | None:
    """Whether `wanted` can be written at `root`; nothing is changed and no array is read.

    Returns:
        the manifest that is there, or None when there is none that can be read (a new place, or a damaged one).

    Raises:
        IncompatibleError: a file, a folder with other things, another store, or more views than wanted.
        HostileStoreError: a store that asks for something outside format 1.
    """
    with as_store_errors(root):
        if not root.exists():
            return None
        if not root.is_dir():
            raise IncompatibleError(
                f"{root}: expected a new path or a store, found a file", hint="choose another --out"
            )
        names = {path.name for path in root.iterdir() if not path.name.startswith(f"{ROOT_FILE}.")}
    if names <= {WORK_FOLDER}:
        return None
    try:
        found = read_manifest(root)
    except HostileStoreError:
        raise
    except (CorruptStoreError, IncompatibleError, NotFoundError) as error:
        # Only the root file is damaged: the blocks name their store in their digests, so those of this store are kept.
        if (root / "topk_index" / ROOT_FILE).is_file() and not _is_newer(error):
            return None
        if isinstance(error, IncompatibleError) and not _is_newer(error):
            raise IncompatibleError(
                f"{root}: expected a new path or a store, found a folder with other things", hint="choose another --out"
            ) from error
        raise
    _check_same_store(root, found, wanted)
    return found


def _is_newer(error: Exception) -> bool:
    return isinstance(error, IncompatibleError) and "store format" in error.message


def _check_same_store(root: Path, found: StoreManifest, wanted: StoreManifest) -> None:
    if ledger.store_id_of(found) != wanted.store_id:
        pairs = {
            "teacher, data or views (store key)": (found.store_key[:12], wanted.store_key[:12]),
            "codec": (to_json(found.codec), to_json(wanted.codec)),
            "block rows": (found.block_rows, wanted.block_rows),
            "array shapes": (to_json(found.static_shapes), to_json(wanted.static_shapes)),
        }
        name, (there, asked) = next((name, pair) for name, pair in pairs.items() if pair[0] != pair[1])
        if isinstance(there, dict) and isinstance(asked, dict):  # only what differs
            differing = [key for key in {**there, **asked} if there.get(key) != asked.get(key)]
            there, asked = ({key: side.get(key) for key in differing} for side in (there, asked))
        raise OtherRequestError(
            f"{root}: holds another store: {name} is {there}, asked for {asked}; a store is never overwritten",
            hint="choose another place for the new store, or remove this folder yourself",
        )
    if found.num_views > wanted.num_views:
        raise OtherRequestError(
            f"{root}: holds {found.num_views} views, asked for {wanted.num_views}; views are added, never taken away",
            hint=f"ask for --views {found.num_views}, or derive a smaller store",
        )


def find_existing(root: Path, wanted: StoreManifest) -> Existing:
    """Look at what is there and read back every committed block; call it with the lease held.

    A block counts as committed when its bytes on disk match a digest of the ledger (records, or `commit` of a sealed
    store), whatever happened before: the bytes decide, not the history.
    """
    found = check_place(root, wanted)
    layout = layout_of(wanted)
    candidates = stated_records(root, wanted, layout)
    records = {place: record for place, record in candidates.items() if _is_good(root, wanted, layout, place, record)}
    static = _static_on_disk(root, wanted, layout)
    quality = found.quality if found is not None else {}
    sealed = found if found is not None and _is_sound(root, found, records, static) else None
    return Existing(sealed=sealed, records=records, static_digest=static, quality=quality)


def _is_good(
    root: Path,
    manifest: StoreManifest,
    layout: Mapping[str, ArrayLayout],
    place: tuple[int, int],
    record: ledger.Record,
) -> bool:
    block = block_at(manifest, *place)
    try:
        check_block(root, manifest, block, read_block(root, manifest, layout, block), record.sha256)
    except CorruptStoreError:
        return False
    return True


def _static_on_disk(root: Path, manifest: StoreManifest, layout: Mapping[str, ArrayLayout]) -> str:
    try:
        return ledger.static_digest(manifest.store_id, read_static(root, layout))
    except CorruptStoreError:
        return ""


def _is_sound(root: Path, found: StoreManifest, records: Mapping[tuple[int, int], Any], static: str) -> bool:
    """Whether a store is sealed and nothing of it needs writing: ledger, root digest, metadata and every block."""
    if not found.complete or len(records) < found.num_views * found.blocks_per_view:
        return False
    layout = layout_of(found)
    try:
        commit = read_commit(root, layout["commit"])
        for array in layout.values():
            check_metadata(root, array)
        check_static(root, found, read_static(root, layout), commit[0].tobytes().hex())
    except CorruptStoreError:
        return False
    return bool(static) and ledger.root_digest(found, commit) == found.root_digest


def prepare_arrays(
    root: Path, manifest: StoreManifest, existing: Existing, static: Mapping[str, NDArray[Any]]
) -> Existing:
    """Bring a place into the unfinished state of `manifest`: root file, array metadata, store-level arrays.

    The root file comes first: from then on readers refuse the store until it is sealed again.

    Returns:
        `existing` with the digest of the store-level arrays that are now on disk.
    """
    layout = layout_of(manifest)
    # Workers of a dump whose coordinator was killed may be writing still; what they write is as good as ours.
    remove_dead_claims(root)
    claimed = claimed_places(root)
    remove_partials(root, keep=lambda relative: place_of_partial(relative, layout) in claimed)
    ledger.make_ledger_folder(root)
    write_manifest(root, manifest)
    for group in group_folders(layout):
        make_folder(root / group)
        write_json(root / group / ROOT_FILE, {"zarr_format": 3, "node_type": "group", "attributes": {}})
    for array in layout.values():
        make_folder(root / array.name)
        if not _metadata_is_right(root, array):
            write_json(root / array.name / ROOT_FILE, array.metadata())
    digest = ledger.static_digest(manifest.store_id, static)
    if digest != existing.static_digest:
        for array in static_arrays(layout):
            array_writer.write_static(root, array, static[array.name])
    return replace(existing, sealed=None, static_digest=digest)


def _metadata_is_right(root: Path, array: ArrayLayout) -> bool:
    try:
        check_metadata(root, array)
        return True
    except (CorruptStoreError, NotFoundError):
        return False
