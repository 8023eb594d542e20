"""Chunks of arrays through zarr-python, flushed to disk. The only module that imports zarr.

zarr-python writes each chunk to a temporary file and renames it; here the files and their folders are flushed before
anyone is told that they exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

from kdcache.store.blocks import BlockId
from kdcache.store.files import sync_file
from kdcache.store.layout import ArrayLayout


def write_block(
    root: Path,
    arrays: Iterable[ArrayLayout],
    block: BlockId,
    columns: Mapping[str, NDArray[Any]],
    *,
    linked: set[Path],
    opened: dict[str, Any],
) -> None:
    """Write a block's chunks and flush them.

    Args:
        root: the store's folder; the arrays' metadata is there.
        arrays: the arrays the block covers.
        block: which rows.
        columns: array name -> (rows, ...) in the stored dtype.
        linked: folders that are known to be durable names of their parents; folders flushed here are added.
        opened: arrays opened before, by name; arrays opened here are added. Opening costs as much as a small chunk.
    """
    paths = []
    for array in arrays:
        if array.name not in opened:
            opened[array.name] = _open(root, array)
        handle = opened[array.name]
        rows = slice(block.start, block.stop)
        if array.kind == "view_rows":
            handle[block.view, rows] = columns[array.name]
        else:
            handle[rows] = columns[array.name]
        paths.append(root / array.block_chunk_path(block.view, block.block))
    _flush(root, paths, linked)


def write_static(root: Path, array: ArrayLayout, values: NDArray[Any]) -> None:
    """Write a store-level array and flush it."""
    _open(root, array)[...] = values
    _flush(root, [path for path in (root / array.name / "c").rglob("*") if path.is_file()], set())


def write_commit(root: Path, array: ArrayLayout, values: NDArray[np.uint8]) -> None:
    """Write the commit array and flush it."""
    _open(root, array)[...] = values
    _flush(root, [root / array.chunk_path(0, 0)], set())


def _open(root: Path, array: ArrayLayout) -> Any:
    # write_empty_chunks: a chunk that happens to equal the fill value must exist, or it would look missing. open_array
    # ignores `config` for an array that exists, so it is set on the open array.
    handle = zarr.open_array(LocalStore(root), path=array.name, mode="r+", zarr_format=3)
    return handle.with_config({"write_empty_chunks": True})


def _flush(root: Path, paths: list[Path], linked: set[Path]) -> None:
    """Files first, then the folders that name them. In parallel: a journal takes many flushes in one go (4x here)."""
    folders = {path.parent for path in paths}
    for path in paths:
        for folder in path.parents:
            if folder == root or folder in linked:
                break
            linked.add(folder)
            folders.add(folder.parent)
    with ThreadPoolExecutor(max_workers=8, thread_name_prefix="kdcache-flush") as pool:
        for step in (paths, sorted(folders)):
            for _ in pool.map(sync_file, step):
                pass  # raises the first error
