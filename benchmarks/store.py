"""Open, decode, gather, first batch and memory of the store: bench id `store`.

Ratios are to a vectorised numpy gather from memory maps of the same fields in the same run: the fastest thing a person
would write by hand. Values are noise of the right kind; arithmetic and layout do not depend on them.

    python -m benchmarks.store [--rows 200000 --rows 1280000 ...]
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.machine import median_ratio, paired_seconds, report, seconds_of
from benchmarks.size import manifest_for
from kdcache.loader import TargetStore
from kdcache.store.blocks import BlockId
from kdcache.store.reader import open_reader
from kdcache.store.writer import StoreWriter

CLASSES, TOPK = 1000, 10
FIRST_BATCH = """
import sys, time
import torch
import kdcache
from kdcache.loader import TargetStore
started = time.perf_counter()
store = kdcache.open_store(sys.argv[1])
store.targets(torch.arange(256))
print(time.perf_counter() - started)
"""
STREAM = """
import sys
from pathlib import Path
from kdcache.store.verify import verify_store
assert verify_store(sys.argv[1]).exit_code == 0
# VmHWM, not ru_maxrss: that one starts at the size of the process that started this one
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024)
"""


def columns_of(block: BlockId) -> dict[str, NDArray[Any]]:
    """Columns that pass every check, cheap to make: distinct classes and Dirichlet-like log-probabilities."""
    rng = np.random.Generator(np.random.Philox(key=[1, block.block]))
    start = rng.integers(CLASSES, size=(block.rows, 1))
    step = rng.integers(1, 97, size=(block.rows, 1))
    index = (start + step * np.arange(TOPK)) % CLASSES  # step * 10 < 1000: no class twice
    gaps = rng.exponential(0.6, size=(block.rows, TOPK)).astype(np.float32)
    log_prob = -np.cumsum(gaps, axis=1)
    mass = log_prob[:, -1] - 0.5
    tail = np.stack([mass, log_prob[:, -1] - 4, gaps[:, 0], mass / 2 + 2], axis=1)
    label = index[:, 0]
    digests = rng.integers(65_536, size=block.rows, dtype=np.uint16)
    return {
        "topk_index": index,
        "topk_log_prob": log_prob,
        "tail": tail,
        "label": label,
        "label_log_prob": log_prob[:, 0],
        "row_digest": digests,
    }


def write(folder: Path, rows: int) -> float:
    """Write and seal a store; rows per second of `write_block` alone."""
    spent = 0.0
    with StoreWriter.open(folder, manifest_for(rows, CLASSES, topk=TOPK, precision="default")) as writer:
        for block in writer.pending:
            columns = columns_of(block)
            spent += seconds_of(lambda block=block, columns=columns: writer.write_block(block, columns))
        writer.seal()
    return rows / spent


def maps_of(store: Path, folder: Path) -> list[NDArray[Any]]:
    """The same fields as plain memory maps: index, log-probs, tail, label log-prob, label."""
    reader = open_reader(store)
    view = reader.view(0)
    maps = []
    for position, values in enumerate(
        (view.topk_index, view.topk_log_prob, view.tail, view.label_log_prob, reader.row_array("label"))
    ):
        path = folder / f"{position}.npy"
        np.save(path, values)
        maps.append(np.load(path, mmap_mode="r"))
    return maps


def gather_ratio(store: Path, folder: Path, rows: int, batch: int) -> dict[str, float]:
    """Shuffled gather through `TargetStore.targets` against memory maps; both end in int64 and float32 tensors."""
    targets = TargetStore(open_reader(store), device="cpu")
    maps = maps_of(store, folder)
    order = torch.from_numpy(np.random.Generator(np.random.Philox(key=9)).permutation(rows))
    steps = [order[start : start + batch] for start in range(0, min(rows, 50 * batch), batch)]

    def ours() -> None:
        for chosen in steps:
            targets.targets(chosen)

    def by_hand() -> None:
        for chosen in steps:
            here = chosen.numpy()
            index, log_prob, tail, label_log_prob, label = (np.asarray(values[here]) for values in maps)
            torch.from_numpy(index.astype(np.int64)), torch.from_numpy(label.astype(np.int64))
            for values in (log_prob, tail, label_log_prob):
                torch.from_numpy(values.astype(np.float32))

    pairs = paired_seconds(by_hand, ours, repeats=7)
    count = sum(len(chosen) for chosen in steps)
    rate = count / statistics.median(b for _, b in pairs)
    return {"ratio_to_memmap": round(median_ratio(pairs), 3), "rows_per_s": round(rate)}


def cpu_seconds_of(action: Callable[[], object]) -> float:
    """Processor time of one call, in seconds."""
    started = time.process_time()
    action()
    return time.process_time() - started


def in_new_process(code: str, store: Path) -> float:
    """The number a small program prints about a store."""
    done = subprocess.run([sys.executable, "-c", code, str(store)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def measure(rows: int) -> dict[str, Any]:
    """All figures at one size."""
    folder = Path(tempfile.mkdtemp(prefix="kdcache-bench-"))
    store = folder / "store"
    try:
        written = write(store, rows)
        decode = min(seconds_of(lambda: open_reader(store, threads=1).view(0)) for _ in range(3))
        cpu = min(cpu_seconds_of(lambda: open_reader(store, threads=1).view(0)) for _ in range(3))
        opening = statistics.median(seconds_of(lambda: open_reader(store)) for _ in range(9))
        reader = open_reader(store)
        view = reader.view(0)
        resident = sum(a.nbytes for a in (view.topk_index, view.topk_log_prob, view.tail, view.label_log_prob))
        figures: dict[str, Any] = {
            "write_rows_per_s": round(written),
            "decode_verify_rows_per_s_one_core": round(rows / decode),
            "decode_verify_rows_per_cpu_second": round(rows / cpu),  # the same on a machine that does other things
            "open_ms": round(1000 * opening, 1),
            "first_batch_cold_s": round(in_new_process(FIRST_BATCH, store), 3),
            "stream_rss_mb": round(in_new_process(STREAM, store) / 1e6),
            "resident_bytes_per_row": round((resident + 4 * rows) / rows, 1),
        }
        for batch in (256, 4096):
            figures[f"gather_{batch}"] = gather_ratio(store, folder, rows, batch)
        return figures
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Measure every size and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, action="append", help="rows of the store; may be given more than once")
    options = parser.parse_args()
    started = time.monotonic()
    figures = {str(rows): measure(rows) for rows in options.rows or [200_000, 1_280_000]}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    report("store", {**figures, "seconds": round(time.monotonic() - started), "peak_rss_mb": peak})


if __name__ == "__main__":
    main()
