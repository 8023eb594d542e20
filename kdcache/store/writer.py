"""Writing a store block by block: create, continue, repair or grow; then seal.

Order of every block: chunks -> fsync -> commit record. Nothing is sealed by leaving the writer, only by `seal`, which
re-reads every byte first. Array data goes through zarr-python; the rest here is small atomic files. What is asked of
the teacher, and when, is `dump`'s business.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
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
from kdcache.store.block_reader import check_block, check_static, read_block, read_static
from kdcache.store.block_writer import BlockWriter
from kdcache.store.blocks import BlockId, all_blocks, block_at, blocks_of_view
from kdcache.store.claims import make_claims_folder, remove_dead_claims
from kdcache.store.existing import Existing, check_place, find_existing, prepare_arrays
from kdcache.store.files import as_store_errors, local_path, make_folder, remove_partials, repair_hint
from kdcache.store.holder import is_gone, is_here
from kdcache.store.layout import layout_of, static_arrays
from kdcache.store.lease import Lease, acquire
from kdcache.store.manifest_file import read_manifest, write_manifest
from kdcache.store.session import publish, withdraw
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
        self._blocks = BlockWriter(root, manifest)
        self._shared = False
        self._pending = {
            (block.view, block.block): block
            for block in all_blocks(manifest)
            if (block.view, block.block) not in self._records
        }
        self._unclaimed = _heaps(self._pending)

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
        self._records[block.view, block.block] = self._blocks.write(block, columns, check=lease.check)
        del self._pending[block.view, block.block]

    def views_left(self) -> tuple[int, ...]:
        """Views with pending blocks that nobody has claimed."""
        for view, blocks in self._unclaimed.items():
            while blocks and (view, blocks[0]) not in self._pending:
                heapq.heappop(blocks)  # committed by another worker of a shared store
        return tuple(view for view, blocks in self._unclaimed.items() if blocks)

    def claim(self, view: int) -> BlockId | None:
        """The first pending block of a view that was not claimed before; None when there is none left.

        In a store that is not shared a claim is a note in this process; `JoinedWriter.claim` is the one of workers.
        """
        blocks = self._unclaimed.get(view, [])
        while blocks:
            block = self._pending.get((view, heapq.heappop(blocks)))
            if block is not None:
                return block
        return None

    def release(self, block: BlockId) -> None:
        """Give a claimed block back unwritten."""
        heapq.heappush(self._unclaimed.setdefault(block.view, []), block.block)

    def share(self, run: str) -> None:
        """Let workers join (`JoinedWriter.join`) and write the pending blocks; this writer then coordinates.

        Args:
            run: names this dump, so that workers of another one do not join it.
        """
        lease = self._held_lease()
        self._shared = True
        with as_store_errors(self._root):
            ledger.remove_records(self._root, self._pending)  # what is pending now was found bad, if it was there
            make_claims_folder(self._root)
            publish(self._root, run=run, token=lease.holder.token, pending=self._pending.values())

    def refresh(self) -> tuple[BlockId, ...]:
        """Blocks that workers have committed since the last look, in order.

        Raises:
            LockedError: another process took the store over.
        """
        self._held_lease().check()
        fresh = []
        for place in sorted(ledger.recorded_places(self._root) & self._pending.keys()):
            block = self._pending[place]
            record = ledger.read_record(self._root, self.manifest, block)
            if record is None:
                ledger.remove_records(self._root, [place])
                continue
            self._records[place] = record
            del self._pending[place]
            fresh.append(block)
        return tuple(fresh)

    def take_over_dead_claims(self) -> tuple[str, ...]:
        """Free the blocks of workers that are dead or silent; one message for people about each."""
        self._held_lease().check()
        with as_store_errors(self._root):
            removed = remove_dead_claims(self._root)
        return tuple(
            f"{self._root}: took {block_at(self.manifest, *place)} over from {holder or 'an unknown worker'},"
            f" which {'no longer runs' if holder and is_here(holder) and is_gone(holder) else 'is silent'}"
            for place, holder in removed.items()
        )

    def read_block(self, block: BlockId) -> dict[str, NDArray[Any]]:
        """The stored columns of a committed block, read back from disk and checked against its record."""
        columns = read_block(self._root, self.manifest, self._layout, block)
        check_block(self._root, self.manifest, block, columns, self._records[block.view, block.block].sha256)
        return columns

    def take_back_bad(self) -> CorruptStoreError | None:
        """Re-read everything; blocks that are not on disk as they were committed lose their records and are pending.

        Returns:
            what is wrong with the first bad block, or None.

        Raises:
            CorruptStoreError, ChecksumError: a store-level array is damaged; opening the store again writes it.
        """
        check_static(self._root, self.manifest, read_static(self._root, self._layout), self._static)
        first: CorruptStoreError | None = None
        for place, block in {(b.view, b.block): b for b in all_blocks(self.manifest)}.items():
            if place in self._pending:
                continue
            try:
                self.read_block(block)
            except CorruptStoreError as error:
                self._pending[place] = block
                error.hint = repair_hint(self._root)
                first = first or error
        if first is not None:
            ledger.remove_records(self._root, self._pending)
            for place in self._pending:
                self._records.pop(place, None)
            self._unclaimed = _heaps(self._pending)
        return first

    def seal(self, *, quality: Mapping[str, Any] | None = None) -> StoreManifest:
        """Re-read and verify everything, then mark the store complete in one atomic step.

        Args:
            quality: what was measured about the teacher; it goes into the root digest, so it must be a pure function
                of the request and the data. The mean rounding error per view is added.

        Raises:
            ConfigError: blocks are still pending.
            ChecksumError, CorruptStoreError: a block is not on disk as it was committed; all such blocks are pending
                again, and the message names the first.
        """
        lease = self._held_lease()
        if self.manifest.complete:
            return self.manifest
        if self._pending:
            first = next(iter(self._pending.values()))
            raise ConfigError(f"{self._root}: {len(self._pending)} blocks are not written yet, the first is {first}")
        if self._shared:
            withdraw(self._root)  # a worker that wakes up now finds the work done
            self._shared = False
            remove_partials(self._root)  # of killed workers: every block is committed, so no worker needs its own
        if bad := self.take_back_bad():
            raise bad
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
        if self._shared:
            withdraw(self._root)
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


def _heaps(places: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    """Blocks by view, each a heap: the next one is found at once however many there are."""
    heaps: dict[int, list[int]] = {}
    for view, block in sorted(places):
        heaps.setdefault(view, []).append(block)
    return heaps


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
