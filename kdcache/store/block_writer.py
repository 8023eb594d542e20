"""Making one block durable and then true: chunks, flush, commit record. Who may write it is the caller's `check`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from kdcache.specs import StoreManifest
from kdcache.store import array_writer, ledger
from kdcache.store.blocks import BlockId
from kdcache.store.files import as_store_errors
from kdcache.store.layout import block_arrays, layout_of
from kdcache.store.values import rounding_loss, to_stored


class BlockWriter:
    """Writes blocks of one store; remembers which arrays are open and which folders are durable.

    Args:
        root: the store's folder; the arrays' metadata is there.
        manifest: of the store.
    """

    def __init__(self, root: Path, manifest: StoreManifest) -> None:
        self._root = root
        self._manifest = manifest
        self._layout = layout_of(manifest)
        self._linked: set[Path] = set()
        self._opened: dict[str, Any] = {}

    def write(self, block: BlockId, columns: Mapping[str, NDArray[Any]], *, check: Callable[[], None]) -> ledger.Record:
        """Write and commit a block.

        Args:
            block: which rows.
            columns: as `StoreWriter.write_block` takes them.
            check: called before the chunks and before the record; raises when the block is no longer the caller's.

        Raises:
            ConfigError, NumericError: the columns cannot be stored; nothing was written.
            ResourceError: no space.
        """
        stored = to_stored(self._manifest, self._layout, block, columns)
        record = ledger.Record(
            sha256=ledger.block_digest(self._manifest.store_id, block, stored), rounding=rounding_loss(columns, stored)
        )
        check()
        with as_store_errors(self._root):
            arrays = block_arrays(self._layout, block.view)
            array_writer.write_block(self._root, arrays, block, stored, linked=self._linked, opened=self._opened)
            check()
            ledger.write_record(self._root, self._manifest, block, record)
        return record
