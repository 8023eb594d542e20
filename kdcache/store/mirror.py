"""The local copy of a remote store: files are fetched when a reader needs them, checked, and kept for the next run.

The copy lies in the cache, in a folder named by the store's root digest, so it can never belong to another store. Only
chunks are fetched: array metadata is a function of the manifest. Every file is compared with its own checksum before
it gets its name, and with the ledger by the reader that decodes it. Two processes may fill one copy.
"""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c

from kdcache.errors import CorruptStoreError, NotFoundError
from kdcache.progress import Progress
from kdcache.specs import StoreManifest
from kdcache.store.blocks import BlockId
from kdcache.store.chunks import CRC_BYTES, max_file_bytes
from kdcache.store.files import PARTIAL, as_store_errors, make_folder, one_at_a_time
from kdcache.store.layout import ArrayLayout, block_arrays, static_arrays
from kdcache.store.location import Location

CONNECTIONS = 8  # requests on their way: enough to hide 50 ms of latency, few enough for any service
MEMORY_BYTES = 512 * 2**20  # of files on their way together
TRIES_PER_FILE = 3  # of a download whose checksum is wrong


class Mirror:
    """Files of one remote store in a local folder.

    Attributes:
        root: the local folder; a store once everything was fetched.
        source: where the files come from.
        bytes_fetched: by this object.
    """

    def __init__(self, source: Location, root: Path, layout: Mapping[str, ArrayLayout]) -> None:
        self.source = source
        self.root = root
        self._layout = layout
        self.bytes_fetched = 0

    @classmethod
    def in_cache(
        cls, source: Location, manifest: StoreManifest, layout: Mapping[str, ArrayLayout], cache: Path
    ) -> Mirror:
        """The mirror of a sealed store under a cache folder."""
        return cls(source, cache / manifest.root_digest / "store", layout)

    def fetch_blocks(self, blocks: Iterable[BlockId]) -> None:
        """Bring the chunks of blocks here; those that are here and sound stay.

        Raises:
            CorruptStoreError: the remote store lacks a chunk, or its bytes do not match their own checksum.
            RemoteError: the service failed. ResourceError: no space or no permission in the cache.
        """
        wanted = list(blocks)
        files = [
            (array, array.block_chunk_path(block.view, block.block))
            for block in wanted
            for array in block_arrays(self._layout, block.view)
        ]
        self._fetch(files, label=f"fetching view {wanted[0].view}" if wanted else "")

    def fetch_static(self) -> None:
        """Bring the store-level arrays here; as `fetch_blocks`."""
        self._fetch(list(_static_files(self._layout)), label="fetching store-level arrays")

    def forget_blocks(self, blocks: Iterable[BlockId]) -> None:
        """Remove the chunks of blocks: the ledger says they are not what they should be."""
        for block in blocks:
            for array in block_arrays(self._layout, block.view):
                (self.root / array.block_chunk_path(block.view, block.block)).unlink(missing_ok=True)

    def named_by_source(self, error: CorruptStoreError) -> CorruptStoreError:
        """The same error about the remote store instead of its local copy."""
        message = error.message.replace(str(self.root), str(self.source))
        return type(error)(message, hint=f"kdcache verify {self.source}")

    def _fetch(self, files: list[tuple[ArrayLayout, str]], *, label: str) -> None:
        if all(_is_sound(self.root / path) for _, path in files):
            return
        largest = max(array.chunk_bytes for array, _ in files)
        threads = max(1, min(CONNECTIONS, MEMORY_BYTES // largest))
        make_folder(self.root)
        with (
            as_store_errors(self.root),
            one_at_a_time(self.root),  # the second process then finds the files; without locks both fetch
            Progress(len(files), "chunks", label=label, keep=False) as progress,
            ThreadPoolExecutor(threads, thread_name_prefix="kdcache-fetch") as pool,
        ):
            futures = [pool.submit(self._fetch_file, array, path) for array, path in files]
            try:
                for future in futures:
                    self.bytes_fetched += future.result()
                    progress.update(1, {"MB": self.bytes_fetched / 1e6})
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _fetch_file(self, array: ArrayLayout, path: str) -> int:
        target = self.root / path
        if _is_sound(target):
            return 0
        target.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(TRIES_PER_FILE):
            try:
                data = self.source.get(path, limit=max_file_bytes(array))
            except NotFoundError:
                raise CorruptStoreError(
                    f"{self.source}: array {array.name!r}, file {path}: the chunk is missing",
                    hint=f"kdcache verify {self.source}",
                ) from None
            if _checksum_matches(data):
                break
            if attempt + 1 == TRIES_PER_FILE:
                raise CorruptStoreError(
                    f"{self.source}: array {array.name!r}, file {path}: {len(data)} bytes that do not match their own"
                    f" checksum, {TRIES_PER_FILE} times",
                    hint=f"kdcache verify {self.source}",
                )
        temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}{PARTIAL}")
        try:
            # Not flushed to the disk: what a power cut leaves behind fails its checksum and is fetched again.
            temporary.write_bytes(data)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return len(data)


def _static_files(layout: Mapping[str, ArrayLayout]) -> Iterator[tuple[ArrayLayout, str]]:
    for array in static_arrays(layout):
        for number in range(-(-array.shape[0] // array.chunk_shape[0])):
            yield array, array.chunk_path(number, *(0 for _ in array.shape[1:]))


def _is_sound(path: Path) -> bool:
    try:
        return _checksum_matches(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _checksum_matches(data: bytes) -> bool:
    if len(data) < CRC_BYTES:
        return False
    (stated,) = struct.unpack("<I", data[-CRC_BYTES:])
    return bool(google_crc32c.value(data[:-CRC_BYTES]) == stated)
