"""`push` and `pull`: a sealed store from one place to another, checked against its ledger on the way.

Interrupted, the same call continues. Both ends may be a folder or a URL; `pull` ends in a folder. Parts of a store are
`kdcache.pull`'s business: they are stores of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kdcache.errors import ConfigError, IncompatibleError
from kdcache.progress import Progress, note
from kdcache.store.blocks import BlockId, all_blocks
from kdcache.store.files import (
    as_store_errors,
    local_path,
    make_folder,
    sync_file,
    walk_files,
    write_atomic,
    write_json,
)
from kdcache.store.layout import layout_of, static_arrays
from kdcache.store.lease import acquire
from kdcache.store.location import Location
from kdcache.store.manifest_file import ROOT_FILE, group_folders, read_manifest, root_json
from kdcache.store.publish import CONNECTIONS, Publisher, missing_blocks, published_at, refuse_other
from kdcache.store.reader import StoreReader, open_reader
from kdcache.store.remote_lease import RemoteLease
from kdcache.store.verify import unexpected_files
from kdcache.store.work_folder import remove_work_folder
from kdcache.urls import is_url


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What a push or pull did.

    Attributes:
        store: where the store is now, without credentials.
        source: where it came from.
        bytes_moved: bytes sent or fetched by this call; an earlier, interrupted one may have moved others.
        already: True when the whole store was there before.
        parent: root digest of the store it is a part of; "" for a whole store.
    """

    store: str
    source: str
    root_digest: str
    bytes_moved: int
    seconds: float
    already: bool = False
    parent: str = ""


SendBlocks = Callable[[Path, Sequence[tuple[BlockId, str]]], Iterator[int]]


def push_store(store: str, target: str, *, send_blocks: SendBlocks | None = None) -> Transfer:
    """Copy a sealed local store to a place, and publish it there when all of it has arrived.

    Args:
        store: local folder.
        target: URL or folder that will be the store; it is empty, or an interrupted push of this store.
        send_blocks: checks blocks of the store against their ledger digests and brings their chunks to the target;
            the bytes of each, in their order. None: this process does.

    Raises:
        NotFoundError, UnfinishedStoreError: there is no sealed store. CorruptStoreError: it is damaged; nothing is
            published. IncompatibleError: the target holds something else. LockedError: someone else is writing there.
        ConfigError: the target cannot be written. RemoteError: the service failed; the same call continues.
    """
    started = time.monotonic()
    location = Location.at(target)
    location.require_writable()
    root = local_path(store)
    reader = open_reader(root)
    manifest = reader.manifest
    if published_at(location) is not None:
        refuse_other(location, manifest)
        return Transfer(
            store=str(location), source=str(root), root_digest=manifest.root_digest, bytes_moved=0,
            seconds=time.monotonic() - started, already=True,
        )  # fmt: skip
    digests = {(block.view, block.block): reader.digest(block) for block in all_blocks(manifest)}
    with RemoteLease.acquire(location) as lease:
        publisher = Publisher(root, location, manifest, lease)
        missing = missing_blocks(manifest, digests, publisher.uploaded)
        if len(missing) < len(digests):
            note(f"continuing: {len(digests) - len(missing)} of {len(digests)} blocks are at {location}")
        if send_blocks is None:
            _check_blocks(reader, missing)
        else:
            committed = [(block, digests[block.view, block.block]) for block in missing]
            publisher.upload_by_others(committed, send_blocks(root, committed))
        publisher.finish(manifest, digests)
    return Transfer(
        store=str(location), source=str(root), root_digest=manifest.root_digest, bytes_moved=publisher.bytes_sent,
        seconds=time.monotonic() - started,
    )  # fmt: skip


def pull_whole(source: str, folder: str | Path) -> Transfer:
    """Copy a sealed store to a local folder: checked chunk by chunk, the manifest last. Continues an earlier call.

    Raises:
        NotFoundError, UnfinishedStoreError, CorruptStoreError: the source is no sealed, sound store.
        IncompatibleError: the folder holds something else. LockedError: another process writes it.
        RemoteError, ResourceError: the service or the disk failed; the same call continues.
    """
    started = time.monotonic()
    root = local_folder(folder)
    reader = open_reader(source, copy_to=root)
    manifest, layout = reader.manifest, layout_of(reader.manifest)
    if (root / ROOT_FILE).is_file():
        refuse_other(Location.at(root), manifest)
        return Transfer(
            store=str(root), source=reader.location, root_digest=manifest.root_digest, bytes_moved=0,
            seconds=time.monotonic() - started, already=True,
        )  # fmt: skip
    if root.exists():
        refuse_strangers(root, reader)
    make_folder(root)
    lease = acquire(root)
    try:
        for view in range(manifest.num_views):
            for _ in reader.blocks(view):
                pass  # fetched, decoded and compared with the ledger
        for array in static_arrays(layout):
            reader.static(array.name)
        with as_store_errors(root):
            _write_metadata(root, reader)
            _flush(root)
            lease.check()
            write_json(root / ROOT_FILE, root_json(manifest))
    finally:
        lease.release()
    remove_work_folder(root)
    read_manifest(root)
    return Transfer(
        store=str(root), source=reader.location, root_digest=manifest.root_digest,
        bytes_moved=reader.bytes_fetched, seconds=time.monotonic() - started,
    )  # fmt: skip


def local_folder(place: str | Path) -> Path:
    """The folder a pull shall end in; ConfigError for a URL of a service."""
    location = Location.at(place)
    if location.folder is None:
        raise ConfigError(
            f"{location}: expected a local folder to pull into, found a URL", hint="kdcache push STORE URL goes there"
        )
    return location.folder


def refuse_strangers(root: Path, reader: StoreReader) -> None:
    """Refuse a folder with files that no pull of this store makes; IncompatibleError names one."""
    if root.is_file():
        raise IncompatibleError(f"{root}: expected a new folder, found a file", hint="choose another DIR")
    for stranger in unexpected_files(root, layout_of(reader.manifest)):
        if not stranger.array.endswith(".partial"):
            raise IncompatibleError(
                f"{root}: expected a new folder or an interrupted pull of this store, found {stranger.array!r}",
                hint="choose another DIR",
            )


def _check_blocks(reader: StoreReader, blocks: list[BlockId]) -> None:
    """Nothing that is damaged is published: each block is decoded and compared with the ledger first."""
    with Progress(len(blocks), "blocks", label="checking", keep=False) as progress:
        for block in blocks:
            reader.block(block.view, block.block)
            progress.update(1)


def _write_metadata(root: Path, reader: StoreReader) -> None:
    layout = layout_of(reader.manifest)
    for group in group_folders(layout):
        make_folder(root / group)
        write_json(root / group / ROOT_FILE, {"zarr_format": 3, "node_type": "group", "attributes": {}})
    for array in layout.values():
        make_folder(root / array.name)
        write_json(root / array.name / ROOT_FILE, array.metadata())
    path = root / layout["commit"].chunk_path(0, 0)
    make_folder(path.parent)
    write_atomic(path, reader.commit_chunk())


def _flush(root: Path) -> None:
    """Everything to the disk before the manifest says that it is there; partial files of an earlier call go."""
    paths = []
    for relative, _ in list(walk_files(root)):
        if relative.endswith(".partial"):
            (root / relative).unlink(missing_ok=True)
        else:
            paths.append(root / relative)
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for step in (paths, sorted({path.parent for path in paths})):
            for _ in pool.map(sync_file, step):
                pass


def is_remote(place: str) -> bool:
    """Whether a place is on a server, so that files have to travel."""
    return is_url(place) and Location.at(place).folder is None
