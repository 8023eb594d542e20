"""The blocks of an ensemble's mean opinion, from those of its members. Workers import this and not `merge`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import CorruptStoreError, IncompatibleError
from kdcache.specs import StoreManifest
from kdcache.store.blocks import BlockId, all_blocks
from kdcache.store.files import WORK_FOLDER, as_store_errors, make_folder, read_json, write_json
from kdcache.store.ledger import store_id_of
from kdcache.store.reader import StoreReader, open_reader
from kdcache.store.row_spans import RowSpans
from kdcache.targets.ensemble import mean_opinion
from kdcache.targets.soft import SoftTargets
from kdcache.workers.filling import Columns, Maker

COPIED = ("mask", "sequence_offsets", "view_params")  # what belongs to the rows and views, not to a teacher
BOUNDS_FOLDER = f"{WORK_FOLDER}/bounds"
PARTNER = "partner_label_log_prob"  # of mixed views: one stated number of each member, so its mean is exact


def mean_maker(request: Mapping[str, Any], manifest: StoreManifest) -> Maker:
    """What makes the blocks of a mean, in a worker.

    Args:
        request: "stores", the members in their order, and "out", the new store.
        manifest: of the new store.

    Raises:
        IncompatibleError: the members there are not those of the manifest.
    """
    return MeanBlocks([open_reader(str(store)) for store in request["stores"]], manifest, Path(str(request["out"])))


class MeanBlocks:
    """Makes the blocks of a mean and keeps beside the store how far each can be from the true one.

    The bounds are not part of the format, so a small file for each block lies in the work folder until the store is
    sealed: whoever made the block, and whenever, the result then covers it.
    """

    def __init__(self, readers: Sequence[StoreReader], manifest: StoreManifest, out: Path) -> None:
        expected = [parent["root_digest"] for parent in manifest.parents]
        found = [reader.manifest.root_digest for reader in readers]
        if found != expected:
            raise IncompatibleError(
                f"merge: expected the members with root digests {', '.join(digest[:12] for digest in expected)}, "
                f"found {', '.join(digest[:12] for digest in found)}",
                hint="every worker must see the same files",
            )
        self._members = [RowSpans(reader) for reader in readers]
        self._manifest = manifest
        self._store_id = store_id_of(manifest)
        self._folder = out / BOUNDS_FOLDER

    def __call__(self, block: BlockId) -> Columns:
        """The columns of one block of the mean."""
        columns, bound = self._merged(block)
        self._keep(block, bound)
        return columns

    def measured(self) -> dict[str, float]:
        """The bounds over all rows and views: total variation from the true mean, mean and largest."""
        found = [self._kept(block) or self._keep(block, self._merged(block)[1]) for block in all_blocks(self._manifest)]
        rows = sum(block.rows for block in all_blocks(self._manifest))
        return {
            "merge_bound_mean": sum(total for total, _ in found) / rows,
            "merge_bound_max": max(most for _, most in found),
        }

    def _keep(self, block: BlockId, bound: NDArray[np.float32]) -> tuple[float, float]:
        kept = float(bound.sum(dtype=np.float64)), float(bound.max())
        value = {"store_id": self._store_id, "sum": kept[0], "max": kept[1]}
        with as_store_errors(self._folder):
            make_folder(self._folder)
            write_json(self._folder / f"{block.view}-{block.block}.json", value)
        return kept

    def _kept(self, block: BlockId) -> tuple[float, float] | None:
        try:
            value = read_json(self._folder, f"{block.view}-{block.block}.json", limit=4096)
            return (float(value["sum"]), float(value["max"])) if value["store_id"] == self._store_id else None
        except (FileNotFoundError, CorruptStoreError, KeyError, TypeError, ValueError):
            return None  # a killed writer's; the bound is found again

    def _merged(self, block: BlockId) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        parts = [member.columns(block.view, block.start, block.stop) for member in self._members]
        first, one = parts[0], self._members[0]
        for member, other in zip(self._members[1:], parts[1:], strict=True):
            _check_same(one.reader, member.reader, block, first, other)
        label = first["label"] if "label" in first else one.labels(block.start, block.stop)
        classes = self._manifest.dataset.num_classes
        members = [SoftTargets.from_columns(columns, label, num_classes=classes) for columns in parts]
        mean = mean_opinion(members, topk=self._manifest.codec.topk)
        kept = mean.targets
        columns = {
            **{name: first[name] for name in (*COPIED, "row_digest") if name in first},
            "label": label,
            "topk_index": kept.index.numpy(),
            "topk_log_prob": kept.log_prob.numpy(),
            "tail": kept.tail.numpy(),
            "label_log_prob": kept.label_log_prob.numpy(),
        }
        if PARTNER in self._manifest.codec.fields:
            each = np.stack([part[PARTNER].astype(np.float32) for part in parts])
            columns[PARTNER] = np.logaddexp.reduce(each, axis=0) - np.float32(math.log(len(each)))
        return columns, mean.bound.numpy()


def _check_same(one: StoreReader, other: StoreReader, block: BlockId, a: Columns, b: Columns) -> None:
    for name in ("label", "row_digest", *COPIED):
        if name in a and not (name in b and np.array_equal(a[name], b[name])):
            raise IncompatibleError(
                f"{one.location} and {other.location} cannot be merged: {name} differs in {block}",
                hint="dump both teachers over the same data and views",
            )
