"""The whole `dump-teacher` against the bare forward over the same reader, its stages, 1 and 2 workers: id `dump-whole`.

The whole: identify data and teacher, build it, probe it, forward, encode, write, read back, seal; all of it but the
imports of a new process, which are given apart. The bare side reads and forwards the same rows and throws the logits
away. The two run in turn, and each pass is as long as asked for (`--seconds` of bare forward). The ratio is bare time /
dump time: 1 is "recording costs nothing". It is given in seconds and in processor seconds; the latter stay about the
same on a machine that does other things, too. `whole` is everything; `running` leaves out what comes before the first
row is asked about and does not grow with the rows: building the teacher, and the probe of a 64th of the rows, 64 at
least and 512 at most, which is a large share of a pass as short as these (`prepare_s`, `probe_rows`).

Stages are timed one by one over the same batches, so their sum is what a dump would take if nothing overlapped. Two
workers are compared with one of a single thread, in seconds of the whole command. Random weights and noise images:
arithmetic does not depend on them.

    python -m benchmarks.dump_whole [--seconds 30] [--repeats 2] [--case resnet32x4 ...] [--no-workers]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.dump import images
from benchmarks.machine import ROOT, report, seconds_of
from kdcache.datasets.source import DataSource
from kdcache.devices import HostCopy, choose_device
from kdcache.dump import dump_teacher
from kdcache.dump_plan import DumpConfig, new_manifest, plan_dump
from kdcache.loader import InputReader
from kdcache.progress import set_quiet
from kdcache.specs import StoreManifest
from kdcache.store.writer import StoreWriter
from kdcache.targets.encode import EncodedBatch, encode_topk
from kdcache.teacher_run import TeacherRun
from kdcache.teachers import LoadedTeacher

CALIBRATION_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """A teacher and the rows it is asked about."""

    model: str
    pixels: int
    classes: int
    batch_size: int


CASES = {
    "resnet32x4": Case(model="resnet32x4", pixels=32, classes=100, batch_size=128),
    "resnet18-1k": Case(model="torchvision:resnet18", pixels=224, classes=1000, batch_size=32),
    "resnet18-21k": Case(model="torchvision:resnet18", pixels=224, classes=21_841, batch_size=32),
}


@contextmanager
def rows_on_disk(case: Case, rows: int) -> Iterator[Path]:
    """An NPZ file of noise images of the case, without compression."""
    source = images(rows, case.pixels, case.classes)
    with tempfile.TemporaryDirectory(prefix="kdcache-bench-") as folder:
        data = Path(folder) / "noise.npz"
        names = np.array([str(number) for number in range(case.classes)])
        np.savez(data, train_images=source.examples, train_labels=source.labels, names=names)
        yield data


def request(case: Case, data: Path, out: Path) -> DumpConfig:
    """What `dump-teacher` is asked."""
    return DumpConfig(
        dataset="npz", data_root=data, teacher=case.model, init_seed=0, batch_size=case.batch_size,
        allow_weak_teacher=True, out=str(out),
    )  # fmt: skip


def batches_of(manifest: StoreManifest, batch_size: int) -> list[NDArray[np.int64]]:
    """The batches of a dump: every block starts a new one."""
    rows, block = manifest.dataset.num_rows, manifest.block_rows
    return [
        np.arange(start, min(start + batch_size, at + block, rows), dtype=np.int64)
        for at in range(0, rows, block)
        for start in range(at, min(at + block, rows), batch_size)
    ]


def built(config: DumpConfig) -> tuple[DataSource, LoadedTeacher, StoreManifest, TeacherRun]:
    """What a dump works with, made as it makes it."""
    plan = plan_dump(config)
    teacher = plan.teacher.load(plan.source, choose_device(config.device))
    manifest = new_manifest(config, plan, teacher)
    return plan.source, teacher, manifest, TeacherRun.for_store(manifest, plan.source, teacher, plan.policy)


def rows_for(case: Case, seconds: float) -> int:
    """Rows whose bare forward takes about so long here; whole batches."""
    with rows_on_disk(case, case.batch_size) as data:
        _, _, manifest, run = built(request(case, data, data.parent / "none.zarr"))
        batches = batches_of(manifest, case.batch_size)
        list(run.forward(batches, view=0))
        passes, started = 0, time.perf_counter()
        while time.perf_counter() - started < CALIBRATION_SECONDS:
            list(run.forward(batches, view=0))
            passes += 1
        rate = passes * case.batch_size / (time.perf_counter() - started)
    return max(1, math.ceil(rate * seconds / case.batch_size)) * case.batch_size


def both_clocks(action: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds and processor seconds of one call, the device's work included."""
    began = time.process_time()

    def settled() -> None:
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return seconds_of(settled), time.process_time() - began


def measure(case: Case, *, seconds: float, repeats: int) -> dict[str, Any]:
    """Whole dumps against bare forwards of one case."""
    rows = rows_for(case, seconds)
    bare: list[tuple[float, float]] = []
    whole: list[tuple[float, float]] = []
    stages_of_dump: list[dict[str, float]] = []
    with rows_on_disk(case, rows) as data:
        source, teacher, manifest, run = built(request(case, data, data.parent / "none.zarr"))
        batches = batches_of(manifest, case.batch_size)
        device = teacher.device
        before = [both_clocks(lambda: prepare(request(case, data, data.parent / "none.zarr")), device)[1]]

        def forward() -> None:
            for _ in run.forward(batches, view=0):
                pass

        probed = run.probe(batch_size=case.batch_size).rows

        def dump(number: int) -> None:
            done = dump_teacher(request(case, data, data.parent / f"store-{number}.zarr"))
            stages_of_dump.append(dict(done.stages))

        for number in range(repeats):
            first, second = ((bare, forward), (whole, lambda number=number: dump(number)))[:: -1 if number % 2 else 1]
            for kept, action in (first, second):
                kept.append(both_clocks(action, device))
        stages = stages_one_by_one(source, teacher, manifest, batches[: max(1, len(batches) // 4)])
    return {
        **vars(case),
        "rows": rows,
        "bare_rows_per_s": round(rows / statistics.median(a for a, _ in bare), 1),
        "whole_rows_per_s": round(rows / statistics.median(b for b, _ in whole), 1),
        "ratio_whole": round(statistics.median(a / b for (a, _), (b, _) in zip(bare, whole, strict=True)), 3),
        "ratio_running": round(
            statistics.median(
                a / (b - found["prepare"]) for (a, _), (b, _), found in zip(bare, whole, stages_of_dump, strict=True)
            ),
            3,
        ),
        "ratio_whole_processor": round(statistics.median(a / b for (_, a), (_, b) in zip(bare, whole, strict=True)), 3),
        "ratio_running_processor": round(
            statistics.median(a / (b - before[0]) for (_, a), (_, b) in zip(bare, whole, strict=True)), 3
        ),
        "probe_rows": probed,
        "prepare_s": round(statistics.median(found["prepare"] for found in stages_of_dump), 2),
        "prepare_processor_s": round(before[0], 2),
        "pairs_s": [[round(a, 2), round(b, 2)] for (a, _), (b, _) in zip(bare, whole, strict=True)],
        "whole_stages_s": {
            name: round(statistics.median(found[name] for found in stages_of_dump), 2) for name in stages_of_dump[0]
        },
        "us_per_row_one_by_one": stages,
    }


def prepare(config: DumpConfig) -> None:
    """What a dump does before the first row is asked about, but for opening the store."""
    _, _, _, run = built(config)
    run.probe(batch_size=config.batch_size)


def stages_one_by_one(
    source: DataSource, teacher: LoadedTeacher, manifest: StoreManifest, batches: list[NDArray[np.int64]]
) -> dict[str, float]:
    """Microseconds a row of each stage, one after another."""
    device, topk = teacher.device, manifest.codec.topk
    plain = InputReader(source, teacher.preprocessing, device=device)
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
            encoded.append(encode_topk(answer, torch.from_numpy(source.labels[rows]), topk=topk))

    def write() -> None:
        parts = [batch.columns() for batch in encoded]
        whole = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
        whole["row_digest"] = np.zeros(len(whole["label"]), dtype=np.uint16)
        with (
            tempfile.TemporaryDirectory(prefix="kdcache-bench-") as folder,
            StoreWriter.open(f"{folder}/store.zarr", manifest, static=teacher.static) as writer,
        ):
            for block in writer.pending:
                if block.stop <= len(whole["label"]):
                    writer.write_block(
                        block, {name: column[block.start : block.stop] for name, column in whole.items()}
                    )

    actions: dict[str, Callable[[], object]] = {
        "load": lambda: list(plain.batches(batches)),
        "forward": forward,
        "encode": encode,
        "copy": lambda: [HostCopy(batch.device_columns()).wait() for batch in encoded],
        "write": write,
    }
    count = sum(len(rows) for rows in batches)
    return {name: round(1e6 * both_clocks(action, device)[0] / count, 1) for name, action in actions.items()}


def command_seconds(case: Case, data: Path, workers: int) -> tuple[float, float, str]:
    """Seconds of one whole command in a process of one thread per worker; those after its imports; the root digest."""
    with tempfile.TemporaryDirectory(prefix="kdcache-bench-") as folder:
        words = ["dump-teacher", "--dataset", "npz", "--data-root", str(data), "--teacher", case.model]
        words += ["--init-seed", "0", "--batch-size", str(case.batch_size), "--allow-weak-teacher"]
        words += ["--workers", str(workers), "--out", f"{folder}/store.zarr", "--json", "-q"]
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "kdcache", *words], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True, stdout=subprocess.PIPE,
        )  # fmt: skip
        taken, answer = time.perf_counter() - started, json.loads(done.stdout)
        return taken, float(answer["seconds"]), str(answer["root_digest"])


def scaling(case: Case, *, seconds: float, repeats: int) -> dict[str, Any]:
    """One worker against two, of one thread each."""
    rows = rows_for(case, seconds)
    with rows_on_disk(case, rows) as data:
        runs = {workers: [command_seconds(case, data, workers) for _ in range(repeats)] for workers in (1, 2)}
    with rows_on_disk(case, case.batch_size) as data:
        least = [command_seconds(case, data, 1) for _ in range(repeats)]
    found: dict[str, Any] = {"model": case.model, "rows": rows}
    for workers, taken in runs.items():
        found[f"workers_{workers}_s"] = round(statistics.median(whole for whole, _, _ in taken), 2)
        found[f"workers_{workers}_after_imports_s"] = round(statistics.median(inner for _, inner, _ in taken), 2)
    found["speed_up"] = round(found["workers_1_s"] / found["workers_2_s"], 2)
    found["start_up_s"] = round(statistics.median(whole - inner for whole, inner, _ in least), 2)
    found["same_store"] = len({digest for taken in runs.values() for _, _, digest in taken}) == 1
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of bare forward in each pass")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--case", action="append", choices=list(CASES), default=None)
    parser.add_argument("--no-workers", action="store_true", help="leave out the comparison of 1 and 2 workers")
    asked = parser.parse_args()
    set_quiet(True)
    started = time.monotonic()
    names = asked.case or list(CASES)
    figures: dict[str, Any] = {
        name: measure(CASES[name], seconds=asked.seconds, repeats=asked.repeats) for name in names
    }
    if not asked.no_workers:
        figures["workers"] = scaling(CASES[names[0]], seconds=asked.seconds, repeats=max(1, asked.repeats - 1))
    report("dump-whole", {**figures, "seconds": round(time.monotonic() - started)})


if __name__ == "__main__":
    main()
