"""The ledger: which blocks are committed, and the sha256 of what each decodes to.

While a store is written, one small record per block lies in `.kdcache/ledger/`; sealing folds them into the `commit`
array, whose bytes go into the root digest. A digest names its store, view and block, so that a block, a chunk or a
ledger row of another place or another store never passes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.canonical import canonical_json, digest_of, to_json
from kdcache.errors import CorruptStoreError, HostileStoreError
from kdcache.specs import StoreManifest
from kdcache.store.blocks import BlockId, all_blocks, block_at
from kdcache.store.files import WORK_FOLDER, Root, make_folder, read_json, sync_folder, write_json
from kdcache.store.layout import DIGEST_BYTES, ArrayLayout

LEDGER_FOLDER = f"{WORK_FOLDER}/ledger"
STATIC_RECORD = "static"
OUTSIDE_DIGEST = ("creator", "root_digest", "store_key")
_RECORD_NAME = re.compile(r"(0|[1-9]\d{0,9})-(0|[1-9]\d{0,9})\.json")
_HEX = re.compile(r"[0-9a-f]{64}")
_MAX_RECORD = 4096


@dataclass(frozen=True)
class Record:
    """One committed block.

    Attributes:
        sha256: hex digest of the block (`block_digest`).
        rounding: mean over the block's rows of the KL in nats that rounding to the store's precision cost at T=1;
            None when it was not measured by the writer of this record.
    """

    sha256: str
    rounding: float | None = None


def store_id_of(manifest: StoreManifest) -> str:
    """32 hex characters that name what a store's blocks are: the key, the codec and the block size; not V.

    It is a digest, not a random number: two dumps of one request on like machines are the same store, bit for bit.
    """
    return digest_of(
        {
            "store_key": manifest.store_key,
            "codec": to_json(manifest.codec),
            "block_rows": manifest.block_rows,
            "static_shapes": to_json(manifest.static_shapes),
        }
    )[:32]


def block_digest(store_id: str, block: BlockId, columns: Mapping[str, NDArray[Any]]) -> str:
    """Hex sha256 of a block's place and decoded values.

    Args:
        store_id: of the manifest.
        block: which block.
        columns: array name -> (rows, ...) values in the stored dtype.
    """
    hasher = hashlib.sha256(f"kdcache block {store_id} {block.view} {block.block}\n".encode())
    _update(hasher, columns)
    return hasher.hexdigest()


def static_digest(store_id: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Hex sha256 of the store-level arrays: row 0 of `commit`. Defined (and equal for like stores) for none, too."""
    hasher = hashlib.sha256(f"kdcache static {store_id}\n".encode())
    _update(hasher, arrays)
    return hasher.hexdigest()


def _update(hasher: Any, columns: Mapping[str, NDArray[Any]]) -> None:
    for name in sorted(columns):
        values = np.ascontiguousarray(columns[name])
        shape = ",".join(map(str, values.shape))
        hasher.update(f"{name} {values.dtype.name} {shape}\n".encode())
        hasher.update(values.reshape(-1).view(np.uint8).data)


def root_digest(manifest: StoreManifest, commit: NDArray[np.uint8]) -> str:
    """Hex sha256 over the sealed manifest (creator and the digest itself left out) and the commit array's bytes."""
    plain = {name: item for name, item in manifest.to_json().items() if name not in OUTSIDE_DIGEST}
    hasher = hashlib.sha256(canonical_json({**plain, "complete": True}).encode())
    hasher.update(b"\n")
    hasher.update(np.ascontiguousarray(commit).data)
    return hasher.hexdigest()


def commit_array(
    layout: ArrayLayout, manifest: StoreManifest, static: str, records: Mapping[tuple[int, int], Record]
) -> NDArray[np.uint8]:
    """Fold digests into `commit` (1 + V * blocks, 32): row 0 the store-level arrays, then the blocks view-major."""
    rows = [static, *(records[block.view, block.block].sha256 for block in all_blocks(manifest))]
    return np.frombuffer(bytes.fromhex("".join(rows)), dtype=np.uint8).reshape(layout.shape)


def commit_row(manifest: StoreManifest, view: int, block: int) -> int:
    """The row of `commit` that holds a block's digest."""
    return 1 + view * manifest.blocks_per_view + block


def write_record(root: Path, manifest: StoreManifest, block: BlockId, record: Record) -> None:
    """Commit a block durably; call it only when the block's chunks are on the disk."""
    value = {
        "store_id": manifest.store_id,
        "view": block.view,
        "block": block.block,
        "sha256": record.sha256,
        "rounding": record.rounding,
    }
    write_json(root / LEDGER_FOLDER / f"{block.view}-{block.block}.json", value)


def remove_records(root: Path, places: Iterable[tuple[int, int]]) -> None:
    """Take the commitments of (view, block) places back, durably, before their chunks are written again."""
    found = recorded_places(root) & set(places)
    for view, block in found:
        (root / LEDGER_FOLDER / f"{view}-{block}.json").unlink(missing_ok=True)
    if found:
        sync_folder(root / LEDGER_FOLDER)


def has_record(root: Path, block: BlockId) -> bool:
    """Whether a record lies at a block's place; what it says is not read."""
    return (root / LEDGER_FOLDER / f"{block.view}-{block.block}.json").exists()


def recorded_places(root: Root) -> set[tuple[int, int]]:
    """(view, block) of every record file there is; what they say is not read."""
    if isinstance(root, Path):
        folder = root / LEDGER_FOLDER
        try:
            names = os.listdir(folder) if not folder.is_symlink() else []
        except (FileNotFoundError, NotADirectoryError):
            return set()
    else:
        names = [] if root.read_only else [found.name.rsplit("/", 1)[-1] for found in root.list(LEDGER_FOLDER)]
    matches = map(_RECORD_NAME.fullmatch, names)
    return {(int(match[1]), int(match[2])) for match in matches if match is not None}


def committed_places(root: Root, manifest: StoreManifest, commit: ArrayLayout) -> set[tuple[int, int]]:
    """(view, block) of the blocks that an unfinished store has; by names and sizes of files, not by what they say.

    Besides the records these are the blocks of an earlier sealing with fewer views, whose `commit` is there still.
    """
    per_view = manifest.blocks_per_view
    places = {(view, block) for view, block in recorded_places(root) if view < manifest.num_views and block < per_view}
    if isinstance(root, Path):
        with suppress(FileNotFoundError, NotADirectoryError):
            rows = (root / commit.chunk_path(0, 0)).stat().st_size // DIGEST_BYTES
            places |= {divmod(row, per_view) for row in range(min(rows, commit.shape[0]) - 1)}
    return places


def read_records(root: Root, manifest: StoreManifest) -> dict[tuple[int, int], Record]:
    """The commit records of an unfinished store, keyed by (view, block).

    A record that is torn, of another store, or of a block the store does not have commits nothing and is left out.
    """
    records = {}
    for view, block in sorted(recorded_places(root)):
        if view >= manifest.num_views or block >= manifest.blocks_per_view:
            continue
        record = read_record(root, manifest, block_at(manifest, view, block))
        if record is not None:
            records[view, block] = record
    return records


def read_record(root: Root, manifest: StoreManifest, block: BlockId) -> Record | None:
    """The record of one block; None when there is none, or it is torn or of another store."""
    try:
        value = read_json(root, f"{LEDGER_FOLDER}/{block.view}-{block.block}.json", limit=_MAX_RECORD)
    except (FileNotFoundError, HostileStoreError, CorruptStoreError):
        return None
    if not isinstance(value, dict) or set(value) != {"store_id", "view", "block", "sha256", "rounding"}:
        return None
    place = (value["store_id"], value["view"], value["block"])
    digest, rounding = value["sha256"], value["rounding"]
    if place != (manifest.store_id, block.view, block.block):
        return None
    if not isinstance(digest, str) or _HEX.fullmatch(digest) is None:
        return None
    if not (rounding is None or (isinstance(rounding, float) and np.isfinite(rounding))):
        return None
    return Record(sha256=digest, rounding=rounding)


def make_ledger_folder(root: Path) -> None:
    """Create the folder of the records."""
    make_folder(root / LEDGER_FOLDER)


class Digests:
    """Ledger digest of each block, looked up when it is asked for: a hostile ledger can name very many blocks."""

    def __init__(
        self,
        manifest: StoreManifest,
        *,
        commit: NDArray[np.uint8] | None = None,
        records: Mapping[tuple[int, int], Record] | None = None,
    ) -> None:
        self._manifest = manifest
        self._commit = commit
        self._records = {} if records is None else records

    def of(self, block: BlockId) -> str | None:
        """Hex sha256 of a committed block, or None."""
        if self._commit is not None:
            return bytes(self._commit[commit_row(self._manifest, block.view, block.block)]).hex()
        record = self._records.get((block.view, block.block))
        return None if record is None else record.sha256

    @property
    def commit(self) -> NDArray[np.uint8]:
        """The commit array of a sealed store."""
        if self._commit is None:
            raise ValueError("an unfinished store has no commit array")
        return self._commit

    @property
    def static(self) -> str:
        """Hex sha256 of the store-level arrays; "" in an unfinished store."""
        return "" if self._commit is None else bytes(self._commit[0]).hex()

    def committed(self) -> Iterator[tuple[BlockId, str]]:
        """The committed blocks with their digests, view-major."""
        if self._commit is None:
            for view, block in sorted(self._records):
                yield block_at(self._manifest, view, block), self._records[view, block].sha256
        else:
            for place in all_blocks(self._manifest):
                yield place, self.of(place) or ""


def records_of_commit(manifest: StoreManifest, commit: NDArray[np.uint8]) -> dict[tuple[int, int], Record]:
    """The digests that a commit array states for the first views, as records (used to grow and to repair)."""
    per_view = manifest.blocks_per_view
    found = {}
    for row in range(1, min(len(commit), 1 + manifest.num_views * per_view)):
        view, block = divmod(row - 1, per_view)
        digest = commit[row].tobytes()
        if len(digest) == DIGEST_BYTES:
            found[view, block] = Record(sha256=digest.hex())
    return found
