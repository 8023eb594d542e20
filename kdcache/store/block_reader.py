"""Reading one block from disk: every chunk decoded and the whole compared with its ledger digest. No state.

The reader, the verifier and the writer's sealing all go through here, so there is one place that decides what is good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ChecksumError, CorruptStoreError
from kdcache.specs import StoreManifest
from kdcache.store.blocks import BlockId
from kdcache.store.chunks import decode_chunk, max_file_bytes
from kdcache.store.files import Root, read_bytes, repair_hint
from kdcache.store.layout import ArrayLayout, block_arrays, static_arrays
from kdcache.store.ledger import Record, block_digest, read_records, records_of_commit, static_digest

Columns = dict[str, NDArray[Any]]


def read_block(root: Root, manifest: StoreManifest, layout: Mapping[str, ArrayLayout], block: BlockId) -> Columns:
    """Decode a block's chunks without asking the ledger.

    Returns:
        array name -> contiguous (rows, ...) values in the stored dtype, padding cut off.

    Raises:
        CorruptStoreError: a chunk is missing, damaged or of another shape; the message names array, block and rows.
    """
    return {array.name: read_block_array(root, array, block) for array in block_arrays(layout, block.view)}


def read_block_array(root: Root, array: ArrayLayout, block: BlockId) -> NDArray[Any]:
    """One array's part of a block: contiguous (rows, ...); errors as `read_block`."""
    chunk = _read_chunk(root, array, array.block_chunk_path(block.view, block.block), str(block))
    rows = chunk[0] if array.kind == "view_rows" else chunk
    return np.ascontiguousarray(rows[: block.rows])


def check_block(
    root: Root, manifest: StoreManifest, block: BlockId, columns: Mapping[str, NDArray[Any]], sha256: str
) -> None:
    """Compare a decoded block with the ledger.

    Raises:
        ChecksumError: it decodes to something else than what was committed.
    """
    found = block_digest(manifest.store_id, block, columns)
    if found != sha256:
        raise ChecksumError(
            f"{root}: {block} decodes to sha256 {found[:16]}..., the ledger says {sha256[:16]}...:"
            " a chunk was swapped, replaced or is stale",
            hint=repair_hint(root),
        )


def read_static(root: Root, layout: Mapping[str, ArrayLayout]) -> Columns:
    """Decode the store-level arrays without asking the ledger; errors as `read_block`."""
    return {array.name: _read_static_array(root, array) for array in static_arrays(layout)}


def check_static(root: Root, manifest: StoreManifest, arrays: Mapping[str, NDArray[Any]], sha256: str) -> None:
    """Compare the store-level arrays with row 0 of the ledger; ChecksumError when they differ."""
    found = static_digest(manifest.store_id, arrays)
    if found != sha256:
        raise ChecksumError(
            f"{root}: the arrays {', '.join(sorted(arrays)) or '(none)'} have sha256 {found[:16]}...,"
            f" the ledger says {sha256[:16]}...",
            hint=repair_hint(root),
        )


def _read_static_array(root: Root, array: ArrayLayout) -> NDArray[Any]:
    parts = []
    for start in range(0, array.shape[0], array.chunk_shape[0]):
        path = array.chunk_path(start // array.chunk_shape[0], *(0 for _ in array.shape[1:]))
        stop = min(start + array.chunk_shape[0], array.shape[0])
        parts.append(_read_chunk(root, array, path, f"rows {start}..{stop - 1}")[: stop - start])
    return parts[0].copy() if len(parts) == 1 else np.concatenate(parts)


def read_commit(root: Root, array: ArrayLayout, *, lenient: bool = False) -> NDArray[np.uint8]:
    """The commit array (1 + V * blocks, 32).

    Args:
        root: the store's folder.
        array: layout of `commit`.
        lenient: accept a wrong checksum (for repair: each digest then speaks for its own block only).

    Raises:
        CorruptStoreError: missing or damaged.
    """
    path = array.chunk_path(0, 0)
    if not lenient:
        return _read_chunk(root, array, path, "the ledger")
    try:
        data = read_bytes(root, path, limit=max_file_bytes(array))[: array.chunk_bytes]
    except FileNotFoundError:
        data = b""
    whole = data[: len(data) // array.shape[1] * array.shape[1]]
    return np.frombuffer(whole, dtype=np.uint8).reshape(-1, array.shape[1])


def stated_records(
    root: Root, manifest: StoreManifest, layout: Mapping[str, ArrayLayout]
) -> dict[tuple[int, int], Record]:
    """What the ledger of a store in any state says: `commit` of an earlier sealing, then the newer records over it."""
    commit = read_commit(root, layout["commit"], lenient=True)
    return {**records_of_commit(manifest, commit), **read_records(root, manifest)}


def _read_chunk(root: Root, array: ArrayLayout, path: str, what: str) -> NDArray[Any]:
    where = f"{root}: array {array.name!r}, {what}, file {path}"
    try:
        data = read_bytes(root, path, limit=max_file_bytes(array))
    except FileNotFoundError:
        raise CorruptStoreError(f"{where}: the chunk is missing", hint=repair_hint(root)) from None
    try:
        return decode_chunk(data, array, where=where)
    except CorruptStoreError as error:
        error.hint = error.hint or repair_hint(root)
        raise
