"""A store as dask arrays, so that people analyse soft targets with the tools they know. Needs the extra `dask`.

One task reads one block and compares it with the ledger; every array's chunk is a column of such a block. Nothing is
read before something is computed, and a block that several arrays of one computation need is read once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdcache.canonical import digest_of
from kdcache.errors import ConfigError, IncompatibleError
from kdcache.specs import StoreManifest
from kdcache.store.blocks import all_blocks, blocks_of_view
from kdcache.store.layout import ArrayLayout, layout_of
from kdcache.store.reader import StoreReader, open_reader
from kdcache.urls import is_url

Columns = dict[str, NDArray[Any]]
Graph = dict[Any, Any]  # (name, block...) -> (function, arguments...)
ATTRIBUTES = {  # of StoreArrays -> array of the store
    "index": "topk_index",
    "log_prob": "topk_log_prob",
    "tail": "tail",
    "label_log_prob": "label_log_prob",
    "label": "label",
    "row_digest": "row_digest",
}


class OpenStore(Protocol):
    """A store that is open: `kdcache.open_store` or `open_reader`."""

    @property
    def location(self) -> str:
        """Its folder or URL."""
        ...


@dataclass(frozen=True, kw_only=True)
class StoreArrays:
    """The arrays of a sealed store as `dask.array.Array`: V views, N rows, k classes a row. One chunk is one block.

    Attributes:
        index: (V, N, k) uint8, uint16 or uint32, classes, most probable first.
        log_prob: (V, N, k) float16, log p at T=1 of those classes, nats.
        tail: (V, N, 3) or (V, N, 4) float16, about the classes outside the first k and the label: log of their mass,
            mean and variance of their log p, and (of four) the log of the sum of their p^(1/2).
        label_log_prob: (V, N) float16, the teacher's log p of the label, nats.
        label: (N,) unsigned, ground truth; the first one where views mix two examples.
        row_digest: (N,) uint16, folded digest of the raw example.
        more: the store's other arrays with rows, by name: `view_params` (V, N, W) uint8, `mask` (N,) uint8,
            `features/NAME` (V, N, ...), and so on (docs/store-format.md).
        manifest: what the store says about itself.
    """

    index: Any
    log_prob: Any
    tail: Any
    label_log_prob: Any
    label: Any
    row_digest: Any
    more: Mapping[str, Any]
    manifest: StoreManifest


def to_dask(store: str | Path | OpenStore) -> StoreArrays:
    """A sealed store as dask arrays; metadata and ledger are read and checked now, blocks when they are computed.

    Args:
        store: path or URL, or a store that is open. Workers of a cluster must find it there, too; of a remote store
            each machine keeps what it fetches in its own cache.

    Raises:
        ConfigError: dask is not installed.
        NotFoundError, IncompatibleError, UnfinishedStoreError, CorruptStoreError: as `open_reader`. Computing raises
            CorruptStoreError or ChecksumError for a damaged block, with view, block and rows, and IncompatibleError
            when another store lies there by then.
    """
    try:
        import dask.array as da
        from dask.highlevelgraph import HighLevelGraph
    except ImportError as error:
        raise ConfigError("to_dask: dask is not installed here", hint="pip install 'kdcache[dask]'") from error
    place = store if isinstance(store, str | Path) else store.location
    location = str(place) if is_url(str(place)) else str(Path(place).absolute())
    manifest = open_reader(location).manifest
    token = digest_of([location, manifest.root_digest])[:16]  # equal stores at one place share their tasks
    make: Any = da.Array  # untyped where dask is installed, unknown where it is not
    blocks = f"kdcache-block-{token}"
    reading: Graph = {
        (blocks, block.view, block.block): (read_block, location, manifest.root_digest, block.view, block.block)
        for block in all_blocks(manifest)
    }
    arrays = {}
    for array in layout_of(manifest).values():
        if array.kind not in ("view_rows", "rows"):
            continue
        name = f"kdcache-{array.name.replace('/', '-')}-{token}"
        graph = HighLevelGraph(
            {blocks: reading, name: _columns(name, blocks, array, manifest)}, {blocks: set(), name: {blocks}}
        )
        arrays[array.name] = make(graph, name, chunks=_chunks(array, manifest), dtype=array.dtype)
    named = {attribute: arrays.pop(field) for attribute, field in ATTRIBUTES.items()}
    return StoreArrays(**named, more=arrays, manifest=manifest)


def read_block(location: str, root_digest: str, view: int, block: int) -> Columns:
    """One block's columns, compared with the ledger: a task of `to_dask`."""
    return _opened(location, root_digest).block(view, block)


def column_of(columns: Columns, name: str) -> NDArray[Any]:
    """(1, rows, ...) values of an array with a view axis: a task of `to_dask`."""
    return columns[name][np.newaxis]


def rows_of(columns: Columns, name: str) -> NDArray[Any]:
    """(rows, ...) values of an array without a view axis: a task of `to_dask`."""
    return columns[name]


@lru_cache(maxsize=8)
def _opened(location: str, root_digest: str) -> StoreReader:
    reader = open_reader(location)
    if reader.manifest.root_digest != root_digest:
        raise IncompatibleError(
            f"{location}: expected the store with root digest {root_digest[:16]}..., found "
            f"{reader.manifest.root_digest[:16]}...: it was replaced since to_dask",
            hint="call to_dask again",
        )
    return reader


def _columns(name: str, blocks: str, array: ArrayLayout, manifest: StoreManifest) -> Graph:
    rest = (0,) * len(array.row_shape)
    if array.kind == "rows":
        return {
            (name, block.block, *rest): (rows_of, (blocks, 0, block.block), array.name)
            for block in blocks_of_view(manifest, 0)
        }
    return {
        (name, block.view, block.block, *rest): (column_of, (blocks, block.view, block.block), array.name)
        for block in all_blocks(manifest)
    }


def _chunks(array: ArrayLayout, manifest: StoreManifest) -> tuple[tuple[int, ...], ...]:
    rows = tuple(block.rows for block in blocks_of_view(manifest, 0))
    views = ((1,) * manifest.num_views,) if array.kind == "view_rows" else ()
    return (*views, rows, *((size,) for size in array.row_shape))
