"""Writing a store block by block: create, continue, repair or grow; then seal.

Order of every block: chunks -> fsync -> commit record. Nothing is sealed by leaving the writer, only by `seal`, which
re-reads every byte first. Array data goes through zarr-python; the rest here is small atomic files. What is asked of
the teacher, and when, is `dump`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ConfigError, CorruptStoreError, LockedError
from kdcache.progress import note
from kdcache.specs import StoreManifest
from kdcache.store import array_writer, ledger
from kdcache.store.block_reader import check_block, check_static, read_block, read_static, repair_hint
from kdcache.store.blocks import BlockId, all_blocks, blocks_of_view
from kdcache.store.existing import Existing, check_place, find_existing, prepare_arrays
from kdcache.store.files import as_store_errors, local_path, make_folder
from kdcache.store.layout import block_arrays, layout_of, static_arrays
from kdcache.store.lease import Lease, acquire
from kdcache.store.manifest_file import read_manifest, write_manifest
from kdcache.store.values import rounding_loss, to_stored
from kdcache.store.work_folder import remove_work_folder


class StoreWriter:
    """An open store that this process alone writes; a context manager. An exception never seals.

    Attributes:
        manifest: what the store says about itself; `complete` only after `seal`.
        pending: blocks still to be written, in order.
    """

    def __init__(self, root: Path, manifest: StoreManifest, existing: Existing, lease: Lease | None) -> None:
        self.manifest = manifest
        self._root = root
        self._lease = lease
        self._layout = layout_of(manifest)
        self._records = dict(existing.records)
        self._static = existing.static_digest
        self._linked: set[Path] = set()
        self._opened: dict[str, Any] = {}
        self._pending = {
            (block.view, block.block): block
            for block in all_blocks(manifest)
            if (block.view, block.block) not in self._records
        }

    @classmethod
    def open(
        cls, location: str | Path, manifest: StoreManifest, *, static: Mapping[str, NDArray[Any]] | None = None
    ) -> StoreWriter:
        """Create a store, or continue (unfinished), repair (damaged blocks) or grow (more views) the one that is there.

        Args:
            location: local folder; missing, empty, or a store of the same key, codec and block size.
            manifest: the store asked for; `store_id`, `complete` and `root_digest` are set here.
            static: store-level arrays such as class_weight (K, D) and class_bias (K,), float.

        Raises:
            ConfigError: manifest and static arrays do not fit together, or fewer views than are there.
            IncompatibleError: the folder holds another store or something else; nothing is changed.
            LockedError: a living process writes it; the message names it.
            ResourceError: no space or no permission.
        """
        root = local_path(location)
        given = _as_static(manifest, static or {})
        wanted = replace(manifest, store_id=ledger.store_id_of(manifest), complete=False, root_digest="", quality={})
        check_place(root, wanted)  # refuses before anything is touched
        make_folder(root)
        lease = acquire(root)
        try:
            if lease.taken_over_from is not None:
                note(f"{root}: took over from {lease.taken_over_from}, which no longer runs; committed blocks are kept")
            existing = find_existing(root, wanted)
            if existing.sealed is not None and existing.sealed.num_views == wanted.num_views:
                writer = cls(root, existing.sealed, existing, lease)
            else:
                unfinished = replace(wanted, quality=existing.quality)
                with as_store_errors(root):
                    existing = prepare_arrays(root, unfinished, existing, given)
                writer = cls(root, unfinished, existing, lease)
        except BaseException:
            lease.release()
            raise
        return writer

    @property
    def pending(self) -> tuple[BlockId, ...]:
        """Blocks still to be written, view-major."""
        return tuple(self._pending.values())

    def write_block(self, block: BlockId, columns: Mapping[str, NDArray[Any]]) -> None:
        """Write one pending block durably and commit it.

        Args:
            block: one of `pending`.
            columns: array name -> (rows, ...): topk_index (b, k) whole numbers, topk_log_prob (b, k) float32 nats,
                tail (b, 3 or 4) float32, label_log_prob (b,) float32, label (b,), row_digest (b,), and the optional
                fields of the codec. Rounded here to the codec's precision. The block stays pending if this raises.

        Raises:
            ConfigError, NumericError: the columns cannot be stored; nothing was written.
            LockedError: another process took the store over.
            ResourceError: no space.
        """
        lease = self._held_lease()
        if self._pending.get((block.view, block.block)) != block:
            raise ConfigError(f"{self._root}: {block} is not pending; expected one of the blocks still to be written")
        stored = to_stored(self.manifest, self._layout, block, columns)
        record = ledger.Record(
            sha256=ledger.block_digest(self.manifest.store_id, block, stored), rounding=rounding_loss(columns, stored)
        )
        lease.check()
        with as_store_errors(self._root):
            arrays = block_arrays(self._layout, block.view)
            array_writer.write_block(self._root, arrays, block, stored, linked=self._linked, opened=self._opened)
            lease.check()
            ledger.write_record(self._root, self.manifest, block, record)
        self._records[block.view, block.block] = record
        del self._pending[block.view, block.block]

    def read_block(self, block: BlockId) -> dict[str, NDArray[Any]]:
        """The stored columns of a committed block, read back from disk and checked against its record."""
        columns = read_block(self._root, self.manifest, self._layout, block)
        check_block(self._root, self.manifest, block, columns, self._records[block.view, block.block].sha256)
        return columns

    def seal(self, *, quality: Mapping[str, Any] | None = None) -> StoreManifest:
        """Re-read and verify everything, then mark the store complete in one atomic step.

        Args:
            quality: what was measured about the teacher; it goes into the root digest, so it must be a pure function
                of the request and the data. The mean rounding error per view is added.

        Raises:
            ConfigError: blocks are still pending.
            ChecksumError, CorruptStoreError: a block did not survive on disk; it is pending again at the next `open`.
        """
        lease = self._held_lease()
        if self.manifest.complete:
            return self.manifest
        if self._pending:
            first = next(iter(self._pending.values()))
            raise ConfigError(f"{self._root}: {len(self._pending)} blocks are not written yet, the first is {first}")
        self._verify_all()
        rows = ledger.commit_array(self._layout["commit"], self.manifest, self._static, self._records)
        sealed = replace(self.manifest, quality=self._quality(quality or {}), complete=True)
        sealed = replace(sealed, root_digest=ledger.root_digest(sealed, rows))
        with as_store_errors(self._root):
            array_writer.write_commit(self._root, self._layout["commit"], rows)
            lease.check()
            write_manifest(self._root, sealed)
        self.manifest = read_manifest(self._root)
        return self.manifest

    def close(self) -> None:
        """Release the lease; a sealed store also loses its work folder. Safe to call twice."""
        if self._lease is None:
            return
        lease, self._lease = self._lease, None
        lease.release()
        if self.manifest.complete:
            remove_work_folder(self._root)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _held_lease(self) -> Lease:
        if self._lease is None:
            raise LockedError(f"{self._root}: this writer is closed", hint="open it again: it continues")
        return self._lease

    def _verify_all(self) -> None:
        check_static(self._root, self.manifest, read_static(self._root, self._layout), self._static)
        for block in all_blocks(self.manifest):
            try:
                columns = read_block(self._root, self.manifest, self._layout, block)
                check_block(self._root, self.manifest, block, columns, self._records[block.view, block.block].sha256)
            except CorruptStoreError as error:
                ledger.remove_record(self._root, block)
                error.hint = repair_hint(self._root)
                raise

    def _quality(self, given: Mapping[str, Any]) -> dict[str, Any]:
        before = list(self.manifest.quality.get("rounding_kl", []))
        kept: list[float | None] = []
        for view in range(self.manifest.num_views):
            means = [
                (self._records[view, block.block].rounding, block.rows) for block in blocks_of_view(self.manifest, view)
            ]
            measured = [(mean, rows) for mean, rows in means if mean is not None]
            if len(measured) == len(means):
                kept.append(sum(mean * rows for mean, rows in measured) / self.manifest.dataset.num_rows)
            else:
                kept.append(before[view] if view < len(before) else None)
        return {**given, "rounding_kl": kept}


def _as_static(manifest: StoreManifest, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    arrays = {}
    expected = {array.name: array for array in static_arrays(layout_of(manifest))}
    for name in sorted(set(expected) ^ set(given)):
        raise ConfigError(
            f"store-level array {name!r}: expected {'given' if name in expected else 'listed in the codec fields'},"
            f" found {'missing' if name in expected else 'given only'}"
        )
    for name, array in expected.items():
        values = np.ascontiguousarray(given[name], dtype=array.dtype)
        if values.shape != array.shape:
            raise ConfigError(f"store-level array {name!r}: shape {values.shape}, expected {array.shape}")
        if array.dtype.kind == "f" and not np.isfinite(values).all():
            raise ConfigError(f"store-level array {name!r} holds NaN or infinity")
        arrays[name] = values
    return arrays
