"""Bytes per row, speed and error of every precision: bench id `size`.

Writes one block of generated logits (K = 1000; `benchmarks/logits.py`) as a store of everything format 1 holds, reads
it back, and compares what is read with the dense truth at several temperatures. KL is in nats over head, label and
tail: `kl_total` against the dense truth (the tail curve's error included), `kl_added` beyond that of `exact`.

    python -m benchmarks.size [--logits FILE.npz]       FILE.npz: real logits (N, K) and `labels`, at k = 10
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.logits import LogitGenerator
from benchmarks.machine import report, seconds_of
from benchmarks.tail import bucket_kl, dense_split
from kdcache.canonical import digest_of
from kdcache.specs import CodecSpec, DatasetSpec, PreprocessingSpec, StoreManifest, TeacherSpec, ViewSpec
from kdcache.store.blocks import block_rows_for
from kdcache.store.info import describe
from kdcache.store.precision import MANTISSA_BITS
from kdcache.store.reader import open_reader
from kdcache.store.resident import ViewColumns
from kdcache.store.writer import StoreWriter
from kdcache.targets.encode import encode_topk
from kdcache.targets.soft import TARGET_COLUMNS, SoftTargets
from kdcache.targets.split import split_teacher

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
ROWS = 65_536  # one block as a data set of a million rows has them
KL_ROWS = 4096
BATCH = 4096
Columns = dict[str, NDArray[Any]]


def manifest_for(rows: int, classes: int, *, topk: int, precision: Any, tail_numbers: int = 4) -> StoreManifest:
    """A manifest around numbers that come from nowhere else."""
    data = DatasetSpec(
        name="generated",
        split="train",
        num_rows=rows,
        num_classes=classes,
        content_digest=digest_of("content"),
        label_digest=digest_of("labels"),
    )
    teacher = TeacherSpec(
        source="generated",
        weights="none",
        weights_sha256=digest_of("none"),
        state_digest=digest_of("none"),
        code_digest=digest_of("none"),
        preprocessing=PreprocessingSpec(),
    )
    return StoreManifest(
        format_version=1,
        dataset=data,
        teacher=teacher,
        views=ViewSpec(),
        codec=CodecSpec(topk=topk, precision=precision, tail_numbers=tail_numbers),
        num_views=1,
        block_rows=65_536 if rows >= 16_384 else block_rows_for(rows),
    )


def encoded(logits: Tensor, labels: Tensor, *, topk: int, tail_numbers: int = 4) -> Columns:
    """The columns a dump would write; digests are noise, as they are for real examples."""
    parts = []
    for start in range(0, len(labels), BATCH):
        here = slice(start, start + BATCH)
        batch = encode_topk(logits[here], labels[here], topk=topk, tail_numbers=tail_numbers)
        parts.append({name: tensor.numpy() for name, tensor in batch.columns().items()})
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    noise = np.random.Generator(np.random.Philox(key=5)).integers(65_536, size=len(labels), dtype=np.uint16)
    return {**columns, "label": labels.numpy(), "row_digest": noise}


def generated(rows: int, *, topk: int, tail_numbers: int = 4) -> tuple[Columns, Tensor, Tensor, dict[str, float]]:
    """Columns of `rows` generated rows, the first rows' logits and labels, and what the generator is like."""
    generator = LogitGenerator()
    vectors = generator.class_vectors()
    parts, kept, top1, top10 = [], None, [], []
    for start in range(0, rows, BATCH):
        numbers, classes = generator.batch(vectors, start, min(BATCH, rows - start))
        logits, labels = torch.from_numpy(numbers), torch.from_numpy(classes)
        kept = (logits[:KL_ROWS], labels[:KL_ROWS]) if kept is None else kept
        prob = logits.softmax(dim=1).topk(10, dim=1).values
        top1.append(prob[:, 0].mean().item())
        top10.append(prob.sum(dim=1).mean().item())
        parts.append(encoded(logits, labels, topk=topk, tail_numbers=tail_numbers))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert kept is not None
    facts = {
        "mean_top1_probability": round(np.mean(top1).item(), 3),
        "mean_top10_mass": round(np.mean(top10).item(), 3),
    }
    return columns, *kept, facts


def targets_of(view: ViewColumns, labels: Tensor, num_classes: int) -> SoftTargets:
    """The first rows of a read view as a loader hands them out."""
    columns = {name: getattr(view, name)[: len(labels)] for name in TARGET_COLUMNS}
    return SoftTargets.from_columns(columns, labels.numpy(), num_classes=num_classes)


def measure(
    columns: Columns, logits: Tensor, labels: Tensor, *, precision: str, tail_numbers: int = 4
) -> dict[str, Any]:
    """Write, read and compare one store."""
    rows, topk = columns["topk_index"].shape
    classes = logits.shape[1]
    folder = Path(tempfile.mkdtemp(prefix="kdcache-size-"))
    try:
        manifest = manifest_for(rows, classes, topk=topk, precision=precision, tail_numbers=tail_numbers)
        with StoreWriter.open(folder / "store", manifest) as writer:
            write = sum(
                seconds_of(
                    lambda block=block: writer.write_block(
                        block, {name: values[block.start : block.stop] for name, values in columns.items()}
                    )
                )
                for block in writer.pending
            )
            sealed = writer.seal()
        read = min(seconds_of(lambda: open_reader(folder / "store", threads=1).view(0)) for _ in range(3))
        found = targets_of(open_reader(folder / "store").view(0), labels, classes)
        facts = describe(folder / "store")
        total = {
            t: bucket_kl(dense_split(logits, found, t), split_teacher(found, t)).mean().item() for t in TEMPERATURES
        }
        return {
            "bytes_per_row": round(facts["bytes_on_disk"] / rows, 2),
            "bytes_by_array": {name: round(a["bytes_on_disk"] / rows, 2) for name, a in facts["arrays"].items()},
            "write_rows_per_s": round(rows / write),
            "read_rows_per_s_one_core": round(rows / read),
            "rounding_kl_at_1": float(f"{sealed.quality['rounding_kl'][0]:.2g}"),
            "kl_total": {f"T={t:g}": float(f"{value:.2g}") for t, value in total.items()},
        }
    finally:
        shutil.rmtree(folder)


def with_rounding(figures: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Add what each precision costs beyond `exact`: the difference of the totals, never below 0."""
    exact = figures["exact"]["kl_total"]
    for found in figures.values():
        found["kl_added"] = {t: float(f"{max(0.0, v - exact[t]):.2g}") for t, v in found["kl_total"].items()}
    return figures


def main() -> None:
    """Run every case and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logits", type=Path, help="real logits to measure the error on, .npz")
    parser.add_argument("--rows", type=int, default=ROWS)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for topk, rows in ((10, options.rows), (100, options.rows // 4)):
        columns, logits, labels, facts = generated(rows, topk=topk, tail_numbers=4)
        results["generator"] = facts
        for numbers in (3, 4):
            given = {**columns, "tail": columns["tail"][:, :numbers]}
            cases = {p: measure(given, logits, labels, precision=p, tail_numbers=numbers) for p in MANTISSA_BITS}
            results[f"K=1000 k={topk} tail={numbers} rows={rows}"] = with_rounding(cases)
    if options.logits is not None:
        archive = np.load(options.logits)
        name = next(name for name in archive.files if name != "labels")
        logits = torch.from_numpy(archive[name].astype(np.float32))
        labels = torch.from_numpy(archive["labels"].astype(np.int64))
        for numbers in (3, 4):
            columns = encoded(logits, labels, topk=10, tail_numbers=numbers)
            cases = {p: measure(columns, logits, labels, precision=p, tail_numbers=numbers) for p in MANTISSA_BITS}
            results[f"{options.logits.stem} {name} k=10 tail={numbers}"] = with_rounding(cases)
    report("size", results)


if __name__ == "__main__":
    main()
