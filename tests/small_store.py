"""A small real store for tests: 6x6 images, a linear teacher, the real encoder and writer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.datasets.identity import dataset_spec, row_digests
from kdcache.datasets.source import ArraySource
from kdcache.specs import CodecSpec, PreprocessingSpec, StoreManifest, TeacherSpec, ViewSpec
from kdcache.store.blocks import block_rows_for
from kdcache.store.writer import StoreWriter
from kdcache.targets.encode import encode_topk

NUM_CLASSES = 7


@dataclass(frozen=True, kw_only=True)
class SmallStore:
    """A sealed store with what it was made from."""

    path: Path
    source: ArraySource
    logits: Tensor
    weight: NDArray[np.float32]


def small_source(
    num_rows: int = 300, *, split: str = "train", seed: int = 0, num_classes: int = NUM_CLASSES
) -> ArraySource:
    """(N, 6, 6, 1) uint8 images whose class is the brightest of K fixed random patterns in them, mostly."""
    patterns = np.random.default_rng(99).integers(0, 2, size=(num_classes, 6, 6, 1))
    rng = np.random.default_rng([seed, len(split), num_rows])
    labels = rng.integers(0, num_classes, size=num_rows)
    images = patterns[labels] * 120 + rng.integers(0, 136, size=(num_rows, 6, 6, 1))
    return ArraySource(images.astype(np.uint8), labels, name="patterns", split=split, num_classes=num_classes)


def teacher_logits(source: ArraySource) -> tuple[Tensor, NDArray[np.float32]]:
    """(N, K) float32 logits of a linear teacher that knows the patterns, and its weights (K, 36)."""
    patterns = (
        np.random.default_rng(99).integers(0, 2, size=(source.num_classes, 6, 6, 1)).reshape(source.num_classes, -1)
    )
    weight = ((patterns - patterns.mean(axis=1, keepdims=True)) / 4).astype(np.float32)
    inputs = source.examples.reshape(len(source), -1).astype(np.float32) / 255
    return torch.from_numpy(inputs @ weight.T * 2), weight


def write_small_store(
    path: Path,
    source: ArraySource,
    *,
    logits: Tensor | None = None,
    topk: int = 3,
    card: str = "",
    seal: bool = True,
    with_weight: bool = True,
    precision: str = "default",
    state_digest: str = "1" * 64,
) -> SmallStore:
    """Write a store of the linear teacher's logits, or of given ones, with the real encoder and writer."""
    weight = np.zeros((source.num_classes, 1), dtype=np.float32)
    if logits is None:
        logits, weight = teacher_logits(source)
    else:
        with_weight = False
    manifest = StoreManifest(
        format_version=1,
        dataset=dataset_spec(source, card=card),
        teacher=TeacherSpec(
            source="linear",
            weights="linear.safetensors",
            weights_sha256="0" * 64,
            state_digest=state_digest,
            code_digest="",
            preprocessing=PreprocessingSpec(),
        ),
        views=ViewSpec(),
        codec=CodecSpec(topk=topk, precision=precision, fields=("class_weight",) if with_weight else ()),  # type: ignore[arg-type]
        num_views=1,
        block_rows=block_rows_for(len(source)),
        static_shapes={"class_weight": list(weight.shape)} if with_weight else {},
    )
    with StoreWriter.open(path, manifest, static={"class_weight": weight} if with_weight else {}) as writer:
        for block in writer.pending:
            rows = np.arange(block.start, block.stop)
            labels = torch.from_numpy(source.labels[rows])
            encoded = encode_topk(logits[torch.from_numpy(rows)], labels, topk=topk)
            columns = {name: tensor.numpy() for name, tensor in encoded.columns().items()}
            columns |= {"label": source.labels[rows], "row_digest": row_digests(source, rows)}
            writer.write_block(block, columns)
        if seal:
            writer.seal()
    return SmallStore(path=path, source=source, logits=logits, weight=weight)
