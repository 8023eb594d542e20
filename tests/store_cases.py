"""Small stores for tests: manifests and consistent random columns from dense numpy logits, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.canonical import digest_of
from kdcache.specs import CodecSpec, DatasetSpec, PreprocessingSpec, StoreManifest, TeacherSpec, ViewSpec
from kdcache.store.blocks import BlockId, block_rows_for
from kdcache.store.writer import StoreWriter


def manifest_of(
    *,
    rows: int = 1000,
    classes: int = 300,
    topk: int = 5,
    views: int = 1,
    precision: Any = "default",
    fields: tuple[str, ...] = (),
    shapes: Mapping[str, Any] | None = None,
    teacher: str = "test-teacher",
    tail_numbers: int = 4,
) -> StoreManifest:
    return StoreManifest(
        format_version=1,
        dataset=DatasetSpec(
            name="numbers",
            split="train",
            num_rows=rows,
            num_classes=classes,
            content_digest=digest_of(["content", rows]),
            label_digest=digest_of(["labels", rows]),
        ),
        teacher=TeacherSpec(
            source=teacher,
            weights="weights.safetensors",
            weights_sha256=digest_of(teacher),
            state_digest=digest_of([teacher, "state"]),
            code_digest=digest_of("code"),
            preprocessing=PreprocessingSpec(),
        ),
        views=ViewSpec(),
        codec=CodecSpec(topk=topk, precision=precision, fields=fields, tail_numbers=tail_numbers),
        num_views=views,
        block_rows=block_rows_for(rows),
        static_shapes=dict(shapes or {}),
    )


def columns_of(manifest: StoreManifest, block: BlockId, *, seed: int = 0) -> dict[str, NDArray[Any]]:
    """What a teacher with random logits says about a block: a pure function of (seed, view, block)."""
    rng = np.random.Generator(np.random.Philox(key=seed * 2**40 + block.view * 2**20 + block.block))
    classes, topk = manifest.dataset.num_classes, manifest.codec.topk
    logits = (3 * rng.standard_normal((block.rows, classes))).astype(np.float32)
    labels = np.random.Generator(np.random.Philox(key=seed * 2**40 + 2**39 + block.block)).integers(
        classes, size=block.rows
    )
    columns = encode(logits, labels, topk=topk)
    columns["tail"] = columns["tail"][:, : manifest.codec.tail_numbers]
    columns["row_digest"] = labels.astype(np.uint16)
    if "view_params" in manifest.codec.fields:
        width = manifest.static_shapes["view_params"][0]
        columns["view_params"] = rng.integers(256, size=(block.rows, width), dtype=np.uint8)
    return columns


def encode(logits: NDArray[np.float32], labels: NDArray[np.int64], *, topk: int) -> dict[str, NDArray[Any]]:
    """Top-k columns of dense logits (B, K), in float64 numpy: the reference the tests compare with."""
    wide = logits.astype(np.float64)
    log_prob = wide - np.logaddexp.reduce(wide, axis=1, keepdims=True)
    order = np.argsort(-log_prob, axis=1, kind="stable")[:, :topk]
    rows = np.arange(len(labels))
    in_tail = np.ones_like(log_prob, dtype=bool)
    np.put_along_axis(in_tail, order, False, axis=1)
    in_tail[rows, labels] = False
    count = in_tail.sum(axis=1)
    masked = np.where(in_tail, log_prob, -np.inf)
    with np.errstate(divide="ignore"):
        log_mass = np.log(np.exp(masked).sum(axis=1))
        half_log_mass = np.log(np.exp(masked / 2).sum(axis=1))
    safe = np.maximum(count, 1)
    mean = np.where(in_tail, log_prob, 0).sum(axis=1) / safe
    variance = np.where(in_tail, (log_prob - mean[:, None]) ** 2, 0).sum(axis=1) / safe
    return {
        "topk_index": order,
        "topk_log_prob": np.take_along_axis(log_prob, order, axis=1).astype(np.float32),
        "tail": np.stack([log_mass, mean, variance, half_log_mass], axis=1).astype(np.float32),
        "label": labels,
        "label_log_prob": log_prob[rows, labels].astype(np.float32),
    }


def static_of(manifest: StoreManifest) -> dict[str, NDArray[Any]]:
    rng = np.random.Generator(np.random.Philox(key=77))
    names = [name for name in manifest.codec.fields if name.startswith("class_")]
    return {name: rng.standard_normal(manifest.static_shapes[name]).astype(np.float32) for name in sorted(names)}


def write_store(
    location: Path,
    manifest: StoreManifest,
    *,
    seed: int = 0,
    blocks: int | None = None,
    quality: Mapping[str, Any] | None = None,
) -> StoreManifest:
    """Write a store (or its first blocks) and seal it when nothing is pending."""
    with StoreWriter.open(location, manifest, static=static_of(manifest)) as writer:
        for block in writer.pending[:blocks]:
            writer.write_block(block, columns_of(manifest, block, seed=seed))
        return writer.manifest if writer.pending else writer.seal(quality={"top1": 0.5} if quality is None else quality)


def store_bytes(location: Path) -> dict[str, bytes]:
    """Every file of a store but its work folder: what must be equal for two stores to be bit-identical."""
    files = (path for path in sorted(location.rglob("*")) if path.is_file())
    return {str(path.relative_to(location)): path.read_bytes() for path in files if ".kdcache" not in path.parts}


def bytes_and_files(location: Path) -> tuple[int, int]:
    """Bytes and number of a store's files but those of its work folder."""
    sizes = [path.stat().st_size for path in location.rglob("*") if path.is_file() and ".kdcache" not in path.parts]
    return sum(sizes), len(sizes)
