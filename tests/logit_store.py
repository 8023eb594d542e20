"""Stores written from given logits, one array for each view, with the real encoder and writer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.canonical import digest_of
from kdcache.specs import CodecSpec, DatasetSpec, PreprocessingSpec, StoreManifest, TeacherSpec, ViewSpec
from kdcache.store.blocks import block_rows_for
from kdcache.store.writer import StoreWriter
from kdcache.targets.encode import encode_topk


def random_logits(rows: int, classes: int, *, seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits (N, K) whose rows are unevenly sure, and labels (N,) that the largest logit mostly is."""
    generator = torch.Generator().manual_seed(seed)
    sharpness = scale * torch.rand(rows, 1, generator=generator).add(0.5)
    logits = sharpness * torch.randn(rows, classes, generator=generator)
    noise = torch.randint(classes, (rows,), generator=generator)
    wrong = torch.rand(rows, generator=generator) < 0.25
    return logits, torch.where(wrong, noise, logits.argmax(dim=1))


def write_logit_store(
    path: Path,
    views: Sequence[Tensor],
    labels: Tensor,
    *,
    topk: int,
    precision: Any = "exact",
    class_names: Sequence[str] = (),
    name: str = "made-up",
    source: str = "numbers",
    digests: NDArray[np.uint16] | None = None,
    card: str = "",
    mask: NDArray[np.uint8] | None = None,
) -> Path:
    """Write and seal a store of V = len(views) views; digests are the row numbers unless given; `mask` (N,) is kept."""
    rows, classes = views[0].shape
    manifest = StoreManifest(
        format_version=1,
        dataset=DatasetSpec(
            name=name,
            split="train",
            num_rows=rows,
            num_classes=classes,
            content_digest=digest_of("content"),
            label_digest=digest_of("labels"),
            class_names=tuple(class_names),
            card=card,
        ),
        teacher=TeacherSpec(
            source=source,
            weights="none",
            weights_sha256=digest_of("none"),
            state_digest=digest_of("none"),
            code_digest="",
            preprocessing=PreprocessingSpec(),
        ),
        views=ViewSpec(),
        codec=CodecSpec(topk=topk, precision=precision, fields=() if mask is None else ("mask",)),
        num_views=len(views),
        block_rows=block_rows_for(rows),
    )
    numbers = np.arange(rows).astype(np.uint16) if digests is None else digests
    with StoreWriter.open(path, manifest) as writer:
        for block in writer.pending:
            here = slice(block.start, block.stop)
            encoded = encode_topk(views[block.view][here], labels[here], topk=topk)
            columns = {column: tensor.numpy() for column, tensor in encoded.columns().items()}
            masked = {} if mask is None else {"mask": mask[here]}
            writer.write_block(block, {**columns, "row_digest": numbers[here], **masked})
        writer.seal()
    return path
