"""Bringing a store to a Location so that readers see all of it or nothing: data first, the manifest last and only once.

While this goes on, one small record per block lies under `.kdcache/ledger/` of the target, written after the block's
data: who continues, on this machine or another one, knows by it what is there. What is written is decided elsewhere.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from kdcache.errors import IncompatibleError, KdcacheError, NotFoundError
from kdcache.progress import Progress
from kdcache.specs import StoreManifest
from kdcache.store.blocks import BlockId, all_blocks, block_at
from kdcache.store.files import MAX_ROOT_JSON, PARTIAL, Root
from kdcache.store.layout import ArrayLayout, block_arrays, layout_of, static_arrays
from kdcache.store.ledger import LEDGER_FOLDER, Record, read_record, recorded_places
from kdcache.store.location import Location
from kdcache.store.manifest_file import ROOT_FILE, group_folders, parse_root, read_manifest
from kdcache.store.remote_lease import RemoteLease
from kdcache.store.verify import unexpected_files

CONNECTIONS = 8
_OURS_IN_PART = re.compile(r".+\.[0-9a-f]{32}" + re.escape(PARTIAL))  # `files.write_atomic` before its rename
T = TypeVar("T")
R = TypeVar("R")


class Publisher:
    """Uploads the files of one store.

    Attributes:
        uploaded: (view, block) -> ledger digest of what is known to be at the target.
        bytes_sent: by this publisher.
    """

    def __init__(self, root: Path, target: Location, manifest: StoreManifest, lease: RemoteLease) -> None:
        """Look at what is at the target.

        Raises:
            IncompatibleError: files that are no part of such a store. RemoteError: the service failed.
        """
        self._root = root
        self._target = target
        self._manifest = manifest
        self._layout = layout_of(manifest)
        self._lease = lease
        self._lock = threading.Lock()
        self.bytes_sent = 0
        place: Root = target if target.folder is None else target.folder
        self._refuse_strangers(place)
        self.records = self._read_records(place)
        self.uploaded = {place: record.sha256 for place, record in self.records.items()}

    def _refuse_strangers(self, place: Root) -> None:
        """Refuse a place with other files in it; what a killed writer was just writing into a folder goes."""
        halves = []
        for stranger in unexpected_files(place, self._layout):
            if not _OURS_IN_PART.fullmatch(stranger.array) or not isinstance(place, Path):
                raise IncompatibleError(
                    f"{self._target}: expected an empty place or an interrupted upload of this store, found "
                    f"{stranger.array!r}",
                    hint="choose another place: a store has its folder for itself",
                )
            halves.append(place / stranger.array)
        for half in halves:  # the lease is ours: nobody is writing them
            half.unlink(missing_ok=True)

    def _read_records(self, place: Root) -> dict[tuple[int, int], Record]:
        manifest = self._manifest
        blocks = [
            block_at(manifest, view, block)
            for view, block in sorted(recorded_places(place))
            if view < manifest.num_views and block < manifest.blocks_per_view
        ]
        found = _in_parallel(lambda block: read_record(place, manifest, block), blocks)
        return {
            (block.view, block.block): record for block, record in zip(blocks, found, strict=True) if record is not None
        }

    def upload_block(self, block: BlockId, record: Record) -> None:
        """Upload a block's chunks, then its record. The chunks on disk must be what the record says.

        Raises:
            LockedError: another process took the target over. RemoteError: the service failed.
        """
        self._lease.check()
        for array in block_arrays(self._layout, block.view):
            self._upload(array.block_chunk_path(block.view, block.block))
        self._commit(block, record)

    def _commit(self, block: BlockId, record: Record) -> None:
        """Say at the target that a block's chunks are there."""
        self._lease.check()
        value = {
            "store_id": self._manifest.store_id,
            "view": block.view,
            "block": block.block,
            "sha256": record.sha256,
            "rounding": record.rounding,
        }
        self._target.put(_record_name(block), json.dumps(value, sort_keys=True).encode())
        with self._lock:
            self.uploaded[block.view, block.block] = record.sha256

    def finish(self, sealed: StoreManifest, digests: Mapping[tuple[int, int], str]) -> None:
        """Upload what is missing, then the metadata, and last the manifest, where none is yet.

        Args:
            sealed: the manifest of the sealed store on disk.
            digests: ledger digest of every block.

        Raises:
            IncompatibleError: another store was published here meanwhile.
            LockedError, RemoteError: as `upload_block`.
        """
        self.upload_all(missing_blocks(sealed, digests, self.uploaded), digests)
        names = [f"{name}/{ROOT_FILE}" for name in (*group_folders(self._layout), *self._layout)]
        names += [path for array in static_arrays(self._layout) for path in _chunks(array)]
        names.append(self._layout["commit"].chunk_path(0, 0))
        _in_parallel(self._upload, names)
        self._lease.beat()
        self._lease.check()
        if not self._target.put_new(ROOT_FILE, (self._root / ROOT_FILE).read_bytes()):
            refuse_other(self._target, sealed)
        leftover = {_record_name(block) for block in all_blocks(sealed)} if self.uploaded else set()
        self._target.delete(*sorted(leftover))

    def upload_all(self, blocks: Iterable[BlockId], digests: Mapping[tuple[int, int], str]) -> None:
        """Upload blocks, several at a time, with progress."""
        wanted = list(blocks)
        with Progress(len(wanted), "blocks", label=f"uploading to {self._target}", keep=False) as progress:

            def upload(block: BlockId) -> None:
                self.upload_block(block, Record(sha256=digests[block.view, block.block]))
                with self._lock:
                    progress.update(1, {"MB": self.bytes_sent / 1e6})

            _in_parallel(upload, wanted)

    def upload_by_others(self, committed: Sequence[tuple[BlockId, str]], sent: Iterator[int]) -> None:
        """Record blocks, each with its ledger digest, as others have brought their chunks there; `sent` is their bytes.

        Raises:
            LockedError, RemoteError: as `upload_block`; and what the others raise.
        """
        with Progress(len(committed), "blocks", label=f"uploading to {self._target}", keep=False) as progress:
            for (block, sha256), count in zip(committed, sent, strict=True):
                self._commit(block, Record(sha256=sha256))
                self.bytes_sent += count
                progress.update(1, {"MB": self.bytes_sent / 1e6})

    def _upload(self, path: str) -> None:
        data = (self._root / path).read_bytes()
        self._target.put(path, data)
        with self._lock:
            self.bytes_sent += len(data)


def upload_chunks(root: Path, target: Location, manifest: StoreManifest, block: BlockId) -> int:
    """Bring a block's chunks to a place, a few at once; their bytes. Nothing says there yet that they are whole.

    Raises:
        RemoteError: the service failed.
    """

    def upload(array: ArrayLayout) -> int:
        path = array.block_chunk_path(block.view, block.block)
        data = (root / path).read_bytes()
        target.put(path, data)
        return len(data)

    return sum(_in_parallel(upload, block_arrays(layout_of(manifest), block.view)))


def missing_blocks(
    manifest: StoreManifest, digests: Mapping[tuple[int, int], str], uploaded: Mapping[tuple[int, int], str]
) -> list[BlockId]:
    """The blocks, view-major, of which another digest than the ledger's, or none, is known to be at the target."""
    return [
        block
        for block in all_blocks(manifest)
        if uploaded.get((block.view, block.block)) != digests[block.view, block.block]
    ]


def published_at(target: Location) -> StoreManifest | None:
    """The manifest that is published at a place, or None when there is none.

    Raises:
        CorruptStoreError, IncompatibleError: something else lies where the manifest would.
    """
    if target.size(ROOT_FILE) is None:
        return None
    try:
        return read_manifest(target)
    except NotFoundError:
        return None


def refuse_other(target: Location, ours: StoreManifest) -> None:
    """Say what is published at a place when it is not this store; the same store is fine.

    Raises:
        IncompatibleError: another store, or something that is no store.
    """
    try:
        data = target.get(ROOT_FILE, limit=MAX_ROOT_JSON)
        there = parse_root(json.loads(data), where=str(target))
        if there.root_digest == ours.root_digest:
            return
        what = (
            f"{there.dataset.name} ({there.dataset.split}), {there.teacher.source}, top {there.codec.topk},"
            f" {there.num_views} views, root digest {there.root_digest[:16]}..."
        )
    except (KdcacheError, ValueError) as error:
        what = f"something else ({error})"
    raise IncompatibleError(
        f"{target}: expected nothing or the store with root digest {ours.root_digest[:16] or '(not sealed)'}...,"
        f" found {what}; a published store never changes",
        hint="choose another place",
    )


def _record_name(block: BlockId) -> str:
    return f"{LEDGER_FOLDER}/{block.view}-{block.block}.json"


def _chunks(array: ArrayLayout) -> list[str]:
    count = -(-array.shape[0] // array.chunk_shape[0])
    return [array.chunk_path(number, *(0 for _ in array.shape[1:])) for number in range(count)]


def _in_parallel(action: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Results in order; the first error stops what has not begun."""
    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="kdcache-upload") as pool:
        futures: list[Future[R]] = [pool.submit(action, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
