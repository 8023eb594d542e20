"""Rows per second and memory of `kdcache stats`: bench id `stats`.

Generated logits (`benchmarks/logits.py`) at K = 1000, k = 10, in stores of 1, 2 and 4 blocks of 65,536 rows: the rate,
and the process's peak memory after each, which must not grow with rows.

    python -m benchmarks.stats
"""

from __future__ import annotations

import resource
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import report
from benchmarks.size import generated, manifest_for
from kdcache.stats import store_stats
from kdcache.store.writer import StoreWriter

ROWS = 65_536
TOPK = 10
CLASSES = 1000


def main() -> None:
    """Write, read, and print one JSON document."""
    columns, *_ = generated(ROWS, topk=TOPK)
    results: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="kdcache-stats-"))
    try:
        for blocks in (1, 2, 4):
            place = folder / f"store{blocks}"
            manifest = manifest_for(blocks * ROWS, CLASSES, topk=TOPK, precision="default")
            with StoreWriter.open(place, manifest) as writer:
                for block in writer.pending:
                    writer.write_block(block, columns)
                writer.seal()
            found = min((store_stats(place) for _ in range(2)), key=lambda stats: stats.seconds)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            results[f"{blocks * ROWS} rows"] = {"rows_per_s": found.rows_per_second, "peak_mb": round(peak)}
    finally:
        shutil.rmtree(folder)
    report("stats", results)


if __name__ == "__main__":
    main()
