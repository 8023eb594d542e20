"""One view, decoded and verified, held for random access: in RAM, or in a local memmap cache when it is too large.

Random access through any Zarr engine costs 100 ms for 256 rows; a gather from these arrays costs microseconds.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ChecksumError, CorruptStoreError, ResourceError
from kdcache.specs import StoreManifest
from kdcache.store.block_reader import check_block, read_block_array
from kdcache.store.blocks import BlockId, blocks_of_view
from kdcache.store.files import PARTIAL, as_store_errors, make_folder, one_at_a_time, repair_hint
from kdcache.store.layout import ArrayLayout, block_arrays
from kdcache.store.ledger import block_digest

Digests = Callable[[BlockId], str]


@dataclass(frozen=True, kw_only=True)
class ViewColumns:
    """The columns of one view; treat them as read-only.

    Attributes:
        view: which view.
        topk_index: (N, k) uint8, uint16 or uint32, classes, most probable first.
        topk_log_prob: (N, k) float16, nats, descending.
        tail: (N, 3) or (N, 4) float16: about the classes outside head and label, as in `SoftTargets`.
        label_log_prob: (N,) float16, nats.
        view_params: (N, W) uint8, or None when the store has no augmented views.
        optional: other fields with a view axis, by name.
    """

    view: int
    topk_index: NDArray[Any]
    topk_log_prob: NDArray[np.float16]
    tail: NDArray[np.float16]
    label_log_prob: NDArray[np.float16]
    view_params: NDArray[np.uint8] | None = None
    optional: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LoadedView:
    """A view's columns and, for view 0, the arrays without a view axis (`label`, `row_digest`, ...)."""

    columns: ViewColumns
    rows: Mapping[str, NDArray[Any]]


def view_bytes(manifest: StoreManifest, layout: Mapping[str, ArrayLayout], view: int) -> int:
    """Bytes of one decoded view."""
    per_row = sum(math.prod(array.row_shape) * array.dtype.itemsize for array in block_arrays(layout, view))
    return per_row * manifest.dataset.num_rows


def load_view(
    root: Path,
    manifest: StoreManifest,
    layout: Mapping[str, ArrayLayout],
    view: int,
    digests: Digests,
    *,
    threads: int,
) -> LoadedView:
    """Decode a view into RAM and compare every block with the ledger; errors as `block_reader`."""
    arrays = block_arrays(layout, view)
    num_rows = manifest.dataset.num_rows
    try:
        table = {array.name: np.empty((num_rows, *array.row_shape), dtype=array.dtype) for array in arrays}
    except MemoryError as error:
        raise ResourceError(
            f"{root}: view {view} needs {view_bytes(manifest, layout, view)} bytes of memory"
        ) from error
    _fill(root, manifest, layout, view, digests, table, threads)
    return as_loaded(view, layout, table)


def _fill(
    root: Path,
    manifest: StoreManifest,
    layout: Mapping[str, ArrayLayout],
    view: int,
    digests: Digests,
    table: Mapping[str, NDArray[Any]],
    threads: int,
) -> None:
    arrays = block_arrays(layout, view)

    def fill_block(block: BlockId) -> None:
        here = slice(block.start, block.stop)
        for array in arrays:
            table[array.name][here] = read_block_array(root, array, block)
        check_block(root, manifest, block, {array.name: table[array.name][here] for array in arrays}, digests(block))

    with ThreadPoolExecutor(max_workers=max(1, threads), thread_name_prefix="kdcache-decode") as pool:
        for _ in pool.map(fill_block, blocks_of_view(manifest, view)):
            pass  # map raises the first block's error here


def as_loaded(view: int, layout: Mapping[str, ArrayLayout], table: Mapping[str, NDArray[Any]]) -> LoadedView:
    """Name a table's arrays; they become read-only."""
    for values in table.values():
        values.flags.writeable = False
    known = ("topk_index", "topk_log_prob", "tail", "label_log_prob", "view_params")
    with_view = {name: table[name] for name in table if layout[name].kind == "view_rows"}
    columns = ViewColumns(
        view=view,
        topk_index=with_view["topk_index"],
        topk_log_prob=with_view["topk_log_prob"],
        tail=with_view["tail"],
        label_log_prob=with_view["label_log_prob"],
        view_params=with_view.get("view_params"),
        optional={name: values for name, values in with_view.items() if name not in known},
    )
    return LoadedView(columns=columns, rows={name: table[name] for name in table if layout[name].kind == "rows"})


def load_view_mapped(
    root: Path,
    manifest: StoreManifest,
    layout: Mapping[str, ArrayLayout],
    view: int,
    digests: Digests,
    *,
    cache: Path,
) -> LoadedView:
    """A view as read-only memory maps in a cache folder named by the root digest; built once, checked at each reuse.

    Processes that want the same view at once wait for the first one to build it: it is larger than memory.

    Args:
        root: the store.
        manifest: sealed; its root digest names the cache.
        layout: of the store.
        view: which view.
        digests: ledger digest of a block.
        cache: folder under which the caches of all stores lie.

    Raises:
        ResourceError: no space for the cache.
        CorruptStoreError: the store is damaged; a damaged cache is rebuilt instead.
    """
    folder = cache / manifest.root_digest / f"view-{view}"

    def reused() -> LoadedView | None:
        try:
            table = _open_maps(folder, manifest, layout, view)
            _check_maps(manifest, view, digests, table)
        except (ChecksumError, OSError, ValueError):
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return as_loaded(view, layout, table)

    if folder.is_dir() and (found := reused()) is not None:
        return found
    make_folder(folder.parent)
    with one_at_a_time(folder.parent) as alone:
        if alone:  # no process builds here now: what lies around is of one that was killed, and may be large
            for left in folder.parent.glob(f"{folder.name}.*{PARTIAL}"):
                shutil.rmtree(left, ignore_errors=True)
        built_by_another = folder.is_dir()
        if not built_by_another:
            _build_folder(root, manifest, layout, view, digests, folder)
    if built_by_another:
        return reused() or load_view_mapped(root, manifest, layout, view, digests, cache=cache)
    return as_loaded(view, layout, _open_maps(folder, manifest, layout, view))


def _build_folder(
    root: Path,
    manifest: StoreManifest,
    layout: Mapping[str, ArrayLayout],
    view: int,
    digests: Digests,
    folder: Path,
) -> None:
    """Make the cache of a view; its folder is there whole or not at all."""
    building = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}{PARTIAL}")
    with as_store_errors(folder.parent):
        need = view_bytes(manifest, layout, view)
        free = shutil.disk_usage(folder.parent).free
        if need > free:
            raise ResourceError(
                f"{folder.parent.parent}: view {view} of {root} needs {need} bytes of cache, {free} are free",
                hint="raise --ram-budget, or point KDCACHE_CACHE at a larger disk",
            )
        building.mkdir()
        try:
            _build_maps(root, manifest, layout, view, digests, building)
            os.replace(building, folder)
        except OSError:
            if not folder.is_dir():  # else another process finished the same cache first: use its copy
                raise
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _build_maps(
    root: Path,
    manifest: StoreManifest,
    layout: Mapping[str, ArrayLayout],
    view: int,
    digests: Digests,
    folder: Path,
) -> None:
    """Write block after block with plain writes: memory stays at one block however large the view is."""
    arrays = block_arrays(layout, view)
    files = {array.name: open(folder / _map_name(array.name), "wb") for array in arrays}  # noqa: SIM115
    try:
        for block in blocks_of_view(manifest, view):
            columns = {array.name: read_block_array(root, array, block) for array in arrays}
            check_block(root, manifest, block, columns, digests(block))
            for name, values in columns.items():
                files[name].write(values.reshape(-1).view(np.uint8).data)
    finally:
        for file in files.values():
            file.close()
    (folder / "arrays.json").write_text(json.dumps([array.name for array in arrays]))


def _open_maps(
    folder: Path, manifest: StoreManifest, layout: Mapping[str, ArrayLayout], view: int
) -> dict[str, NDArray[Any]]:
    table: dict[str, NDArray[Any]] = {}
    for array in block_arrays(layout, view):
        shape = (manifest.dataset.num_rows, *array.row_shape)
        path = folder / _map_name(array.name)
        if path.stat().st_size != math.prod(shape) * array.dtype.itemsize:
            raise ChecksumError(f"{path}: not the size of {array.name!r}")
        table[array.name] = np.memmap(path, dtype=array.dtype, mode="r", shape=shape)
    return table


def _check_maps(manifest: StoreManifest, view: int, digests: Digests, table: Mapping[str, NDArray[Any]]) -> None:
    for block in blocks_of_view(manifest, view):
        columns = {name: values[block.start : block.stop] for name, values in table.items()}
        if block_digest(manifest.store_id, block, columns) != digests(block):
            raise ChecksumError(f"the local cache of {block} is not what the ledger says")


def _map_name(array: str) -> str:
    return array.replace("/", "--") + ".bin"


def free_memory() -> int:
    """Bytes of memory that are available now; 4 GiB when the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 4 * 2**30


def refuse_bomb(root: Path, manifest: StoreManifest, layout: Mapping[str, ArrayLayout], view: int) -> None:
    """Look at the chunk files' sizes before any memory is taken for a view.

    Raises:
        CorruptStoreError: a chunk is missing or empty: a store that claims rows without having their bytes.
    """
    for block in blocks_of_view(manifest, view):
        for array in block_arrays(layout, view):
            path = root / array.block_chunk_path(block.view, block.block)
            try:
                size = path.lstat().st_size
            except (FileNotFoundError, NotADirectoryError):
                size = 0
            if size == 0:
                raise CorruptStoreError(
                    f"{root}: array {array.name!r}, {block}: the chunk {path.relative_to(root)} is missing or empty",
                    hint=repair_hint(root),
                )
