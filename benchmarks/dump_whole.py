"""The whole `dump-teacher`, 1 and 2 workers, against the bare forward; and where its time goes: id `dump-whole`.

Whole commands are new processes: imports, probe, sealing and all. Stages are timed one by one over the same batches, so
their sum is what a dump would take if nothing overlapped. Random weights and noise images: arithmetic does not depend
on them.

    python -m benchmarks.dump_whole [--repeats 3] [--rows 4096] [--model resnet8] [--workers 1 --workers 2]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.dump import images, loaded
from benchmarks.machine import ROOT, report, seconds_of
from kdcache.datasets.identity import dataset_spec
from kdcache.datasets.source import ArraySource
from kdcache.devices import HostCopy
from kdcache.loader import InputReader
from kdcache.specs import CodecSpec, StoreManifest, ViewSpec
from kdcache.store.blocks import block_rows_for
from kdcache.store.writer import StoreWriter
from kdcache.targets.encode import EncodedBatch, encode_topk
from kdcache.teacher_run import TeacherRun
from kdcache.teachers import LoadedTeacher
from kdcache.views.policy import ViewPolicy

PIXELS, CLASSES, BATCH = 32, 100, 256


def whole_command(data: Path, model: str, workers: int) -> tuple[float, str]:
    """Seconds of one command in a new folder, and the root digest of what it made."""
    with tempfile.TemporaryDirectory(prefix="kdcache-bench-") as folder:
        words = ["dump-teacher", "--dataset", "npz", "--data-root", str(data), "--teacher", model, "--init-seed", "0"]
        words += ["--allow-weak-teacher", "--workers", str(workers), "--out", f"{folder}/store.zarr", "--json", "-q"]
        answers: list[dict[str, Any]] = []

        def once() -> None:
            done = subprocess.run(
                [sys.executable, "-m", "kdcache", *words], cwd=ROOT, env=dict(os.environ), check=True,
                stdout=subprocess.PIPE,
            )  # fmt: skip
            answers.append(json.loads(done.stdout))

        return seconds_of(once), str(answers[0]["root_digest"])


def stages(source: ArraySource, teacher: LoadedTeacher) -> dict[str, float]:
    """Seconds of each stage over all rows, one after another."""
    batches = [np.arange(at, min(at + BATCH, len(source)), dtype=np.int64) for at in range(0, len(source), BATCH)]
    device = teacher.device
    plain = InputReader(source, teacher.preprocessing, device=device)
    views = InputReader(source, teacher.preprocessing, ViewPolicy.named("cifar"), device=device)
    inputs = [batch for batch, _ in plain.batches(batches)]
    with torch.inference_mode():
        logits = [teacher.logits(batch) for batch in inputs]
    encoded: list[EncodedBatch] = []

    def forward() -> None:
        with torch.inference_mode():
            for batch in inputs:
                teacher.logits(batch)

    def encode() -> None:
        encoded.clear()
        for rows, answer in zip(batches, logits, strict=True):
            encoded.append(encode_topk(answer, torch.from_numpy(source.labels[rows]), topk=10))

    def write() -> None:
        codec = CodecSpec(topk=10, fields=tuple(sorted(teacher.static)))
        manifest = StoreManifest(
            format_version=1, dataset=dataset_spec(source, card=""), teacher=teacher.spec, views=ViewSpec(),
            codec=codec, num_views=1, block_rows=block_rows_for(len(source)),
            static_shapes={name: list(array.shape) for name, array in teacher.static.items()},
        )  # fmt: skip
        parts = [batch.columns() for batch in encoded]
        whole = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
        whole["row_digest"] = np.zeros(len(source), dtype=np.uint16)
        with (
            tempfile.TemporaryDirectory(prefix="kdcache-bench-") as folder,
            StoreWriter.open(f"{folder}/store.zarr", manifest, static=teacher.static) as writer,
        ):
            for block in writer.pending:
                writer.write_block(block, {name: column[block.start : block.stop] for name, column in whole.items()})

    actions: dict[str, Callable[[], object]] = {
        "load": lambda: list(plain.batches(batches)),
        "load and view": lambda: list(views.batches(batches)),
        "forward": forward,
        "encode": encode,
        "copy": lambda: [HostCopy(batch.device_columns()).wait() for batch in encoded],
        "write": write,
    }
    return {name: round(_settled(action, device), 4) for name, action in actions.items()}


def _settled(action: Callable[[], object], device: torch.device) -> float:
    def run() -> None:
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return seconds_of(run)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--workers", type=int, action="append", default=None)
    asked = parser.parse_args()
    source = images(asked.rows, PIXELS, CLASSES)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = loaded(asked.model, source, device)
    run = TeacherRun(source, teacher, CodecSpec(topk=10), None)
    batches = [np.arange(at, min(at + BATCH, len(source)), dtype=np.int64) for at in range(0, len(source), BATCH)]
    bare = statistics.median(_settled(lambda: list(run.forward(batches, view=0)), device) for _ in range(asked.repeats))
    figures: dict[str, Any] = {
        "model": asked.model, "rows": asked.rows, "bare_seconds": round(bare, 3), "stages": stages(source, teacher),
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="kdcache-bench-") as folder:
        data = Path(folder) / "noise.npz"
        small = source.examples[:8], source.labels[:8]
        np.savez(
            data, train_images=source.examples, train_labels=source.labels, test_images=small[0],
            test_labels=small[1], names=np.array([str(number) for number in range(CLASSES)]),
        )  # fmt: skip
        for workers in asked.workers or (1, 2):
            runs = [whole_command(data, asked.model, workers) for _ in range(asked.repeats)]
            seconds = statistics.median(taken for taken, _ in runs)
            figures[f"workers {workers}"] = {
                "seconds": round(seconds, 2),
                "bare_over_whole": round(bare / seconds, 3),
                "root_digests": sorted({digest[:16] for _, digest in runs}),
            }
    report("dump-whole", figures)


if __name__ == "__main__":
    main()
