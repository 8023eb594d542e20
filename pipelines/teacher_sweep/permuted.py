"""A control for the distillation hypothesis: the same confidences, but about the wrong classes.

In every row the probabilities of the classes that are not the most probable one are dealt out to these classes anew.
What a student gains from such a store is regularisation; what it gains more from the true one is distillation.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.canonical import digest_of, to_json
from kdcache.dump import stored_quality
from kdcache.store.reader import open_reader
from kdcache.store.writer import StoreWriter


def write_permuted(store: str | Path, out: str | Path, *, seed: int) -> str:
    """Write the control of a store that keeps all classes; returns its path. Continues where it stopped.

    Args:
        store: a sealed store of all K classes.
        out: where the control goes.
        seed: of the permutations; one per view and row.
    """
    reader = open_reader(store)
    parent = reader.manifest
    classes = parent.dataset.num_classes
    if parent.codec.topk != classes:
        raise ValueError(f"{store}: keeps {parent.codec.topk} of {classes} classes; the control needs all of them")
    teacher = replace(
        parent.teacher,
        source=f"permuted:{parent.teacher.source}",
        state_digest=digest_of([parent.teacher.state_digest, "permuted", seed]),
    )
    fields = tuple(name for name in parent.codec.fields if name not in ("class_weight", "class_bias"))
    manifest = replace(
        parent,
        teacher=teacher,
        codec=replace(parent.codec, fields=fields),
        static_shapes={name: shape for name, shape in parent.static_shapes.items() if name in fields},
        parents=({"relation": "permuted", "root_digest": parent.root_digest, "store_key": parent.store_key},),
        quality={},
        complete=False,
        root_digest="",
    )
    labels = reader.labels
    with StoreWriter.open(out, manifest) as writer:
        wanted = set(writer.pending)
        for view in range(parent.num_views):
            for block, columns in reader.blocks(view):
                if block in wanted:
                    rng = np.random.default_rng([seed, view, block.block])
                    permuted = _permuted(columns, labels[block.start : block.stop], rng)
                    writer.write_block(block, {**columns, **permuted, "label": labels[block.start : block.stop]})
        writer.seal(quality=to_json(stored_quality(writer)))
    return str(out)


def _permuted(
    columns: dict[str, NDArray[Any]], labels: NDArray[np.int64], rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    index = columns["topk_index"].astype(np.int64)
    index[:, 1:] = rng.permuted(index[:, 1:], axis=1)
    at_label = index == labels[:, None]
    log_prob = np.asarray(columns["topk_log_prob"], dtype=np.float32)
    return {"topk_index": index, "label_log_prob": log_prob[at_label]}
