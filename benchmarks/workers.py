"""Store work by one process and by two workers: bench id `workers`.

A store of 1,000,000 rows in four views (K=1000, k=10, noise of the right kind). Wall seconds of the library call, the
median of several rounds that take turns; the workers' start (a new interpreter, and torch for `stats` and `derive`) is
part of it. `start_s` is what a task that does nothing costs: below about twice that much work, one process is quicker.

    python -m benchmarks.workers [--rows 1000000] [--views 4] [--rounds 3]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import started_tasks
from benchmarks.machine import report, seconds_of
from benchmarks.size import manifest_for
from benchmarks.store import CLASSES, TOPK, columns_of
from kdcache.derive import DeriveConfig, derive
from kdcache.stats import store_stats
from kdcache.store.writer import StoreWriter
from kdcache.workers.store_work import push, verify
from kdcache.workers.tasks import Workforce, in_order


def write(folder: Path, rows: int, views: int) -> None:
    """A sealed store."""
    manifest = replace(manifest_for(rows, CLASSES, topk=TOPK, precision="default"), num_views=views)
    with StoreWriter.open(folder, manifest) as writer:
        for block in writer.pending:
            writer.write_block(block, columns_of(block))
        writer.seal()


def tasks(store: Path, folder: Path) -> dict[str, Callable[[int], object]]:
    """Name -> what it does with so many workers."""

    def fresh() -> str:
        shutil.rmtree(folder / "out", ignore_errors=True)
        return str(folder / "out")

    return {
        "verify": lambda workers: verify(store, force=Workforce(workers=workers)),
        "verify --deep": lambda workers: verify(store, deep=True, force=Workforce(workers=workers)),
        "stats": lambda workers: store_stats(store, force=Workforce(workers=workers)),
        "derive --topk 5": lambda workers: derive(DeriveConfig(store=str(store), out=fresh(), topk=5, workers=workers)),
        "push to a folder": lambda workers: push(str(store), fresh(), force=Workforce(workers=workers)),
    }


def measure(task: Callable[[int], object], *, rounds: int, rows: int) -> dict[str, Any]:
    """One and two workers in turn."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds):
        for workers in (1, 2) if turn % 2 == 0 else (2, 1):
            seconds[workers].append(seconds_of(lambda workers=workers: task(workers)))  # type: ignore[misc]
    pairs = zip(seconds[1], seconds[2], strict=True)
    return {
        "one_s": round(statistics.median(seconds[1]), 2),
        "two_s": round(statistics.median(seconds[2]), 2),
        "one_over_two": round(statistics.median(one / two for one, two in pairs), 2),
        "one_rows_per_s": round(rows / statistics.median(seconds[1])),
    }


def main() -> None:
    """Write, measure, print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="kdcache-workers-"))
    try:
        write(folder / "store", options.rows, options.views)
        two = Workforce(workers=2)
        figures: dict[str, Any] = {
            "rows": options.rows * options.views,
            "start_s": {
                name: round(seconds_of(lambda work=work: list(in_order(two, work, [{}, {}]))), 2)  # type: ignore[misc]
                for name, work in (("bare", started_tasks.nothing), ("torch", started_tasks.torch_threads))
            },
        }
        for name, task in tasks(folder / "store", folder).items():
            figures[name] = measure(task, rounds=options.rounds, rows=options.rows * options.views)
    finally:
        shutil.rmtree(folder)
    report("workers", {**figures, "seconds": round(time.monotonic() - started)})


if __name__ == "__main__":
    main()
