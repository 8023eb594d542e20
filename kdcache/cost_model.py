"""What a store costs in bytes and objects, as pure functions of its manifest; reads and writes nothing.

Objects follow from format 1. Bytes are exact for metadata and ledger; those of the chunks come from rates, bytes per
row of each array, which are either measured on a probe (`measured_rates`, what `dump-teacher --dry-run` does) or
expected from k, K and precision (`expected_rates`). Requests, seconds and money: `cost_of_use`. docs/scale.md has the
tables and how far the model was off; benchmarks/scale.py makes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kdcache.canonical import digest_of
from kdcache.specs import CodecSpec, DatasetSpec, Precision, PreprocessingSpec, StoreManifest, TeacherSpec, ViewSpec
from kdcache.store.blocks import block_rows_for
from kdcache.store.files import json_bytes
from kdcache.store.layout import ArrayLayout, is_feature, layout_of
from kdcache.store.manifest_file import group_folders, root_json
from kdcache.store.precision import MANTISSA_BITS

Rates = Mapping[str, float]  # bytes per row (and view) of each array, once compressed, without a chunk's fixed part

# A float array's rate falls with the size of its chunks: zstd finds more. Measured on 0.5 to 2,600 KB a chunk.
_REFERENCE_CHUNK = 65_536
_SHRINKS = {"bytes": 0.05, "bits": 0.01, "zstd": 0.01, "plain": 0.0}
_FIXED_BYTES = {"bytes": 60, "bits": 40, "zstd": 30, "plain": 4}  # frame headers, tables and crc32c of a chunk
# Bits of a top-k log-probability: a + b / sqrt(k), by mantissa bits. Neighbours in a long sorted row are alike.
_TOPK_BITS = {10: (8.9, 9.7), 6: (2.6, 17.0), 4: (1.4, 13.7)}
_TAIL_BITS = {10: 13.5, 6: 9.4, 4: 7.2}  # each number about the tail, and
_LABEL_BITS = {10: 13.8, 6: 10.4, 4: 8.9}  # the label's log-probability
_FLOAT_SHARE = 0.92  # of features' and weights' bytes that are left


def planned_manifest(
    *,
    rows: int,
    classes: int,
    topk: int,
    views: int = 1,
    precision: Precision = "default",
    block_rows: int | None = None,
    view_params: int = 0,
    features: Mapping[str, tuple[int, ...]] | None = None,
    weight_columns: int = 0,
) -> StoreManifest:
    """The manifest of a store that nobody has asked a teacher for yet.

    Args:
        rows: N. classes: K. topk: k. views: V.
        precision: "exact", "default" or "compact".
        block_rows: rows of a block; None is what a dump chooses.
        view_params: bytes per row and view that record the augmentation, packed (docs/views.md); 0 for none.
        features: feature array ("features/penultimate") -> shape of one row.
        weight_columns: D of the teacher's head, whose weight (K, D) and bias are kept; 0 for none.
    """
    shapes: dict[str, list[int]] = {name: list(shape) for name, shape in (features or {}).items()}
    if view_params:
        shapes["view_params"] = [view_params]
    if weight_columns:
        shapes |= {"class_weight": [classes, weight_columns], "class_bias": [classes]}
    nothing = digest_of("planned")
    return StoreManifest(
        format_version=1,
        dataset=DatasetSpec(
            name="planned", split="train", num_rows=rows, num_classes=classes, content_digest=nothing,
            label_digest=nothing,
        ),
        teacher=TeacherSpec(
            source="planned", weights="planned", weights_sha256=nothing, state_digest=nothing, code_digest=nothing,
            preprocessing=PreprocessingSpec(),
        ),
        views=ViewSpec(),
        codec=CodecSpec(topk=topk, precision=precision, fields=tuple(sorted(shapes))),
        num_views=views,
        block_rows=block_rows or block_rows_for(rows),
        static_shapes=dict(sorted(shapes.items())),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StoreSize:
    """A sealed store on disk.

    Attributes:
        array_bytes: chunks of each array, `commit` included.
        array_objects: how many chunks each array has; one file or object each.
        metadata_bytes, metadata_objects: every zarr.json.
        resident_bytes: of one view in a student's memory (`TargetStore`), features not counted; while it is loaded,
            twice as much. A view that would take more than half of what is free goes to a memory map on disk.
        largest_chunk: bytes of the largest chunk as it is written.
    """

    array_bytes: Mapping[str, int]
    array_objects: Mapping[str, int]
    metadata_bytes: int
    metadata_objects: int
    resident_bytes: int
    largest_chunk: int

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.array_bytes.values()) + self.metadata_bytes

    @property
    def objects(self) -> int:
        """Files, or objects of an object store."""
        return sum(self.array_objects.values()) + self.metadata_objects


def expected_rates(manifest: StoreManifest, *, index_bits: float | None = None) -> dict[str, float]:
    """Bytes per row of each array from k, K and precision alone: within 15 % of trained teachers' stores.

    Args:
        manifest: of the store.
        index_bits: bits that a class number takes once compressed. None: log2 K, all classes being alike. Words are
            not: the top 64 of a PTB model (K = 10,000) take 0.87 of log2 K.
    """
    classes, topk = manifest.dataset.num_classes, manifest.codec.topk
    index = math.log2(classes) if index_bits is None else index_bits
    mantissa = MANTISSA_BITS[manifest.codec.precision]
    fixed, falling = _TOPK_BITS[mantissa]
    empty_tail = topk >= classes
    bits = {
        "topk_index": topk * index,
        "topk_log_prob": topk * (fixed + falling / math.sqrt(topk)),
        "tail": 0.0 if empty_tail else manifest.codec.tail_numbers * _TAIL_BITS[mantissa],
        "label_log_prob": _LABEL_BITS[mantissa],
        "partner_label_log_prob": _LABEL_BITS[mantissa],
        "label": index,
        "row_digest": 16.0,
        "mask": 1.0,
    }
    rates = {}
    for name, array in layout_of(manifest).items():
        if array.kind not in ("view_rows", "rows"):
            continue
        whole = math.prod(array.row_shape) * array.dtype.itemsize
        if name in bits:
            rates[name] = min(bits[name] / 8 * _chunk_factor(array), float(whole))
        else:  # drawn classes, recorded views and features
            rates[name] = whole * (_FLOAT_SHARE if is_feature(name) else 0.6)
    return rates


def measured_rates(probe: StoreManifest, sizes: Mapping[str, int], wanted: StoreManifest) -> dict[str, float]:
    """Rates of a store from the chunks of a smaller one with the same teacher, data and codec.

    Args:
        probe: manifest of the store that was measured: fewer rows, perhaps smaller blocks, one view.
        sizes: array -> bytes of its chunks.
        wanted: manifest of the store asked about.
    """
    whole, rates = layout_of(wanted), {}
    for name, array in layout_of(probe).items():
        if array.kind in ("view_rows", "rows"):
            count = math.prod(-(-size // chunk) for size, chunk in zip(array.shape, array.chunk_shape, strict=True))
            moving = max(0, sizes[name] - count * _FIXED_BYTES[array.packing])
            rates[name] = moving / probe.dataset.num_rows * _chunk_factor(whole[name]) / _chunk_factor(array)
    return rates


def store_size(
    manifest: StoreManifest, rates: Rates | None = None, *, static_bytes: Mapping[str, int] | None = None
) -> StoreSize:
    """Bytes and objects of a sealed store.

    Args:
        manifest: of the store.
        rates: bytes per row of each array; None expects them.
        static_bytes: bytes of store-level arrays that are known; others are expected.
    """
    layout = layout_of(manifest)
    found = rates if rates is not None else expected_rates(manifest)
    known = static_bytes or {}
    rows, views = manifest.dataset.num_rows, manifest.num_views
    sizes, counts, largest = {}, {}, 0
    for name, array in layout.items():
        counts[name] = math.prod(-(-size // chunk) for size, chunk in zip(array.shape, array.chunk_shape, strict=True))
        if array.kind == "commit":
            chunk = sizes[name] = array.chunk_bytes + _FIXED_BYTES["plain"]
        elif array.kind == "static":
            plain = math.prod(array.shape) * array.dtype.itemsize
            sizes[name] = known.get(name, round(plain * _FLOAT_SHARE))
            chunk = -(-sizes[name] // counts[name])
        elif array.packing == "plain":  # not compressed: the padding of the last chunk counts
            chunk = array.chunk_bytes + _FIXED_BYTES["plain"]
            sizes[name] = counts[name] * chunk
        else:
            cells = rows * (views if array.kind == "view_rows" else 1)
            sizes[name] = round(cells * found[name]) + counts[name] * _FIXED_BYTES[array.packing]
            chunk = round(found[name] * min(rows, manifest.block_rows)) + _FIXED_BYTES[array.packing]
        largest = max(largest, chunk)
    groups = group_folders(layout)
    documents = [json_bytes(array.metadata()) for array in layout.values()] + [json_bytes(root_json(_sealed(manifest)))]
    documents += [json_bytes({"zarr_format": 3, "node_type": "group", "attributes": {}}) for _ in groups]
    return StoreSize(
        array_bytes=sizes,
        array_objects=counts,
        metadata_bytes=sum(map(len, documents)),
        metadata_objects=len(documents),
        resident_bytes=rows * _resident_row(manifest, layout),
        largest_chunk=largest,
    )


def _resident_row(manifest: StoreManifest, layout: Mapping[str, ArrayLayout]) -> int:
    """Bytes of a row of the gathered tables: classes and log-probabilities with the label, the tail, and the rest."""
    classes, topk = manifest.dataset.num_classes, manifest.codec.topk
    number = 1 if classes <= 2**8 else 2 if classes <= 2**15 else 4  # the types torch can gather
    others = ("view_params", "sample_index", "sample_count")
    rest = sum(math.prod(layout[name].row_shape) * layout[name].dtype.itemsize for name in others if name in layout)
    return (topk + 1) * (number + 2) + 2 * manifest.codec.tail_numbers + rest


def _sealed(manifest: StoreManifest) -> StoreManifest:
    """The manifest with what sealing adds, at its usual length."""
    quality = {"rows": manifest.dataset.num_rows, "top1": 2 / 3, "nll": 2 / 3}
    rounding = [1e-5 / 3] * manifest.num_views
    digest = digest_of("sealed")
    return replace(
        manifest, complete=True, root_digest=digest, store_id=digest[:32], quality={**quality, "rounding_kl": rounding}
    )


def _chunk_factor(array: ArrayLayout) -> float:
    """How an array's rate changes with the size of its chunks: 1 at 64 KB."""
    return float((array.chunk_bytes / _REFERENCE_CHUNK) ** -_SHRINKS[array.packing])
