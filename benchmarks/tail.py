"""How far the stored head and tail are from the teacher at other temperatures: bench id `tail`.

Encodes logits at k, rounds every number as format 1 stores it at the precision asked for, and measures the KL
divergence in nats from the teacher's true (k+2)-bucket distribution (top k, label, everything else) to the one rebuilt
at T. Real logits come from a folder of .npz files with an array of labels and (N, K) arrays of logits.

    python -m benchmarks.tail --logits FOLDER [--precision default]   # real logits
    python -m benchmarks.tail                                         # generator and six synthetic families, K = 1000
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.logits import LogitGenerator
from kdcache.store.precision import MANTISSA_BITS, round_half
from kdcache.targets.encode import encode_topk
from kdcache.targets.head_sums import HOLE
from kdcache.targets.soft import SoftTargets
from kdcache.targets.split import TeacherSplit, split_teacher

TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 8.0)
TOPK = (5, 10, 25, 100)
ROWS = 2_000
CLASSES = 1_000


def stored(targets: SoftTargets, precision: str = "exact") -> SoftTargets:
    """The targets after a round trip through the store's float16."""

    def rounded(values: Tensor) -> Tensor:
        return torch.from_numpy(round_half(values.float().numpy(), precision).astype(np.float32))

    return replace(
        targets,
        log_prob=rounded(targets.log_prob),
        tail=rounded(targets.tail),
        label_log_prob=rounded(targets.label_log_prob),
    )


def bucket_kl(truth: TeacherSplit, found: TeacherSplit) -> Tensor:
    """(B,) KL(truth || found) over the named classes and the tail."""
    head = (truth.prob * (truth.log_prob - found.log_prob.double())).sum(dim=1)
    return head + truth.tail_prob * (truth.log_tail - found.log_tail.double())


def dense_split(logits: Tensor, like: SoftTargets, temperature: float) -> TeacherSplit:
    """The true split at T, from all the logits in float64."""
    log_prob = torch.log_softmax(logits.double() / temperature, dim=1)
    split = split_teacher(like, temperature)
    named = log_prob.gather(1, split.index)
    tail = log_prob.scatter(1, split.index, -torch.inf).logsumexp(dim=1)
    named = named.masked_fill(~split.named, HOLE)
    log_bucket = torch.cat([named, tail.masked_fill(split.empty, HOLE)[:, None]], dim=1)
    return replace(split, log_bucket=log_bucket, bucket=log_bucket.exp())


def measure(
    logits: Tensor, label: Tensor, *, topk: int, tail_numbers: int, precision: str = "exact"
) -> dict[str, dict[str, float]]:
    """Mean and 99th percentile of the bucket KL in nats, per temperature."""
    live = encode_topk(logits, label, topk=topk, tail_numbers=tail_numbers).targets()
    results = {}
    for temperature in TEMPERATURES:
        kl = bucket_kl(dense_split(logits, live, temperature), split_teacher(stored(live, precision), temperature))
        results[f"T={temperature:g}"] = {"mean": float(kl.mean()), "p99": float(kl.quantile(0.99))}
    return results


def real_logits(folder: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Every (N, K) array of every .npz file, with the file's labels."""
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as arrays:
            label = torch.from_numpy(arrays["labels"].astype(np.int64))
            for name in arrays.files:
                if name != "labels":
                    yield f"{name} {arrays[name].dtype}", torch.from_numpy(arrays[name].astype(np.float32)), label


def synthetic_logits() -> Iterator[tuple[str, Tensor, Tensor]]:
    """The generator of `logits.py` and six shapes: light and heavy tails, groups, (un)sure teachers; K = 1000."""
    source = LogitGenerator(num_classes=CLASSES)
    numbers, classes = source.batch(source.class_vectors(), 0, ROWS)
    yield "generator", torch.from_numpy(numbers), torch.from_numpy(classes)
    generator = torch.Generator().manual_seed(0)
    shape = (ROWS, CLASSES)
    normal = torch.randn(shape, generator=generator)
    label = torch.randint(CLASSES, (ROWS,), generator=generator)
    own = torch.nn.functional.one_hot(label, CLASSES).float()
    group = (torch.arange(CLASSES)[None, :] // 20 == label[:, None] // 20).float()
    uniform = torch.rand(shape, generator=generator)
    families = {
        "normal, sd 1": normal,
        "normal, sd 2.5": 2.5 * normal,
        "normal, sure of the label": 2 * normal + 12 * own,
        "groups of 20": 1.5 * normal + 4 * group + 6 * own,
        "exponential": -2 * torch.log(uniform.clamp(min=1e-6)),
        "two levels": normal + 5 * (uniform < 0.1).float(),
    }
    for name, logits in families.items():
        yield name, logits, label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logits", type=Path, help="folder of .npz files; without it synthetic families")
    parser.add_argument("--precision", choices=tuple(MANTISSA_BITS), default="exact", help="of the stored numbers")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    source = real_logits(arguments.logits) if arguments.logits else synthetic_logits()
    rows = []
    for name, logits, label in source:
        for topk in (k for k in TOPK if k < logits.shape[1]):
            for tail_numbers in (3, 4):
                result = measure(logits, label, topk=topk, tail_numbers=tail_numbers, precision=arguments.precision)
                rows.append({"logits": name, "topk": topk, "tail_numbers": tail_numbers, "kl": result})
    if arguments.json:
        print(json.dumps({"bench": "tail", "precision": arguments.precision, "rows": rows}, indent=1))
        return
    print(f"{'logits':28} {'k':>3} {'numbers':>7} " + " ".join(f"{f'T={t:g}':>9}" for t in TEMPERATURES))
    for row in rows:
        values = " ".join(f"{value['mean']:9.1e}" for value in row["kl"].values())
        print(f"{row['logits']:28} {row['topk']:3} {row['tail_numbers']:7} {values}")


if __name__ == "__main__":
    main()
