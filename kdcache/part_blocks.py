"""The blocks of a part of a store: rows cut from the parent's blocks, the classes that go added to the tail.

Workers import this and not `derive`: what a part may be is decided there, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdcache.errors import IncompatibleError
from kdcache.specs import StoreManifest
from kdcache.store.blocks import BlockId
from kdcache.store.reader import StoreReader, open_reader
from kdcache.store.row_spans import RowSpans
from kdcache.targets.soft import SoftTargets
from kdcache.targets.tail import narrow
from kdcache.workers.filling import Columns, Maker


def part_maker(request: Mapping[str, Any], manifest: StoreManifest) -> Maker:
    """What makes the blocks of a part, in this process or in a worker.

    Args:
        request: "store" and "start", the store's row that is the part's first one.
        manifest: of the part.

    Raises:
        IncompatibleError: the store there is not the part's parent.
    """
    return maker_of_part(open_reader(str(request["store"])), int(request["start"]), manifest)


def maker_of_part(reader: StoreReader, start: int, manifest: StoreManifest) -> Maker:
    """`part_maker` of a store that is open."""
    expected, found = manifest.parents[0]["root_digest"], reader.manifest.root_digest
    if found != expected:
        raise IncompatibleError(
            f"{reader.location}: expected the store with root digest {expected[:16]}..., found {found[:16]}...",
            hint="every worker must see the same files",
        )
    spans, topk = RowSpans(reader), manifest.codec.topk

    def make(block: BlockId) -> Columns:
        first, last = start + block.start, start + block.stop
        columns = spans.columns(block.view, first, last)
        if topk == reader.manifest.codec.topk:
            return columns
        if "label" not in columns:  # only view 0 has what has no view axis
            columns["label"] = spans.labels(first, last)
        return narrowed(columns, reader.manifest, topk)

    return make


def narrowed(columns: Columns, parent: StoreManifest, topk: int) -> Columns:
    """A block's columns with the first k' <= k classes; the others join the tail exactly, in float32.

    Args:
        columns: as `StoreReader.blocks` gives them, `label` included.
        parent: manifest of the store they came from.
        topk: k'.
    """
    if topk == parent.codec.topk:
        return columns
    fewer = narrow(SoftTargets.from_columns(columns, columns["label"], num_classes=parent.dataset.num_classes), topk)
    return {
        **columns,
        "topk_index": fewer.index.numpy(),
        "topk_log_prob": fewer.log_prob.numpy(),
        "tail": fewer.tail.numpy(),
    }
