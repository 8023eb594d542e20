"""Seconds per training step from a store against a plain cross-entropy step, in one run: bench id `distill`.

Both sides read the same inputs and train the same student; only targets and loss differ. The ratio is store time /
cross-entropy time, median over interleaved rounds, so 1 is "distilling costs nothing". `gather` is the target table's
share per batch. Opinions of random weights: arithmetic does not depend on them.

    python -m benchmarks.distill [--rounds 9] [--student mlp-32 --student resnet8x4 ...]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.dump import MEAN_STD, images, loaded
from benchmarks.machine import report
from kdcache.datasets.identity import dataset_spec
from kdcache.datasets.source import ArraySource
from kdcache.loader.inputs import InputReader
from kdcache.loader.target_store import TargetStore, open_store
from kdcache.models.preprocess import Preprocessing
from kdcache.models.registry import build_model
from kdcache.specs import CodecSpec, StoreManifest, ViewSpec
from kdcache.store.blocks import block_rows_for
from kdcache.store.writer import StoreWriter
from kdcache.targets.methods import find_method
from kdcache.teacher_run import TeacherRun
from kdcache.training.batch import TrainingFeed
from kdcache.training.objective import Objective

ROWS, CLASSES, BATCH = 8192, 100, 128
STEPS = {"mlp-32": 100, "resnet8": 6, "resnet8x4": 1}  # steps per round and side: a second or two each
METHODS = ("kd", "kd-topk", "dkd")


def store_of(source: ArraySource, folder: Path, topk: int) -> TargetStore:
    """A sealed store of a small random teacher over the rows."""
    teacher = loaded("mlp-32", source, torch.device("cpu"))
    manifest = StoreManifest(
        format_version=1,
        dataset=dataset_spec(source, card=""),
        teacher=teacher.spec,
        views=ViewSpec(),
        codec=CodecSpec(topk=topk, fields=tuple(sorted(teacher.static))),
        num_views=1,
        block_rows=block_rows_for(len(source)),
        static_shapes={name: list(array.shape) for name, array in teacher.static.items()},
        creator={"batch_size": 512},
    )
    with StoreWriter.open(folder, manifest, static=teacher.static) as writer:
        run = TeacherRun(source, teacher, manifest.codec, None)
        run.fill(writer, writer.pending, batch_size=512)
        writer.seal()
    return open_store(folder)


class Side:
    """One student with its optimizer, fed for one method."""

    def __init__(self, student: str, method: str, source: ArraySource, store: TargetStore | None) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = build_model(student, num_classes=CLASSES, input_shape=(3, 32, 32), data=MEAN_STD).module
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        chosen = find_method(method)
        self.objective = Objective(
            method=chosen,
            context=chosen.prepare(store, options={}, temperature=None)
            if store is not None
            else Objective(method=chosen).context,
        )
        self.feed = TrainingFeed(
            InputReader(source, Preprocessing(MEAN_STD)),
            torch.from_numpy(source.labels),
            batch_size=BATCH,
            seed=0,
            store=store,
        )

    def seconds(self, steps: int) -> float:
        """Wall time of some steps: read, gather, forward, loss, backward, update."""
        started = time.perf_counter()
        for batch in islice(self.feed.epoch(0), steps):
            logits = self.model(batch.inputs.to(memory_format=torch.channels_last))
            self.objective(logits, batch, 0.0).mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started


def measure(
    student: str, source: ArraySource, store: TargetStore, *, label: str, rounds: int
) -> list[dict[str, object]]:
    """Every method of one student against cross-entropy."""
    steps = STEPS[student]
    plain = Side(student, "ce", source, None)
    sides = {method: Side(student, method, source, store) for method in METHODS}
    for side in (plain, *sides.values()):
        side.seconds(2)
    times: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
    for _ in range(rounds):
        before = plain.seconds(steps)
        for method, side in sides.items():
            cost, after = side.seconds(steps), plain.seconds(steps)
            times[method].append((cost, (before + after) / 2))
            before = after
    return [
        {
            "student": student,
            "store": label,
            "method": method,
            "ce_ms_per_step": round(statistics.median(ce for _, ce in pairs) / steps * 1e3, 3),
            "ratio": round(statistics.median(cost / ce for cost, ce in pairs), 3),
            "overhead_us_per_row": round(statistics.median(cost - ce for cost, ce in pairs) / steps / BATCH * 1e6, 2),
        }
        for method, pairs in times.items()
    ]


def gather_us(store: TargetStore, *, repeats: int = 300) -> float:
    """Microseconds to gather the targets of one batch."""
    rows = torch.from_numpy(np.random.default_rng(0).permutation(ROWS)[:BATCH].copy())
    store.targets(rows)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        store.targets(rows)
        times.append(time.perf_counter() - started)
    return round(statistics.median(times) * 1e6, 1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--student", action="append", choices=list(STEPS), default=None)
    arguments = parser.parse_args()
    source = images(ROWS, 32, CLASSES)
    figures: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="kdcache-bench-") as folder:
        stores = {
            "k=10": store_of(source, Path(folder) / "10", 10),
            "k=K": store_of(source, Path(folder) / "K", CLASSES),
        }
        gather = {label: gather_us(store) for label, store in stores.items()}
        for student in arguments.student or STEPS:
            for label, store in stores.items():
                figures += measure(student, source, store, label=label, rounds=arguments.rounds)
    report("distill", {"batch": BATCH, "gather_us_per_batch": gather, "steps": figures})


if __name__ == "__main__":
    main()
