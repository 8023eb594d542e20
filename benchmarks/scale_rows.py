"""One store of very many rows on disk, written, sealed, verified and read: id `scale-rows`.

Values are those of the bench `store` (K = 1000, k = 10), about 36 bytes a row. The folder is removed at the end. What
is resident while view 0 is decoded into memory is 54 bytes a row; `--memory` GB are the limit, above it the view goes
to a memory map beside the store, which takes as much disk again.

    python -m benchmarks.scale_rows [--rows 10000000] [--memory 8] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, report, seconds_of
from benchmarks.store import write

STEPS = {
    "open": "store = open_reader(place)",
    "verify": "assert verify_store(place).exit_code == 0",
    "first batch": "TargetStore(open_reader(place, ram_budget=budget), device='cpu').targets(torch.arange(256))",
    "stream": "reader = open_reader(place); rows = sum(block.rows for block, _ in reader.blocks(0))",
}
PROGRAM = """
import json, sys, time
from pathlib import Path
import torch
from kdcache.loader.target_store import TargetStore
from kdcache.store.reader import open_reader
from kdcache.store.verify import verify_store

def peak():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

place, budget = sys.argv[1], int(sys.argv[2])
before, started, cpu = peak(), time.perf_counter(), time.process_time()
{step}
print(json.dumps({{
    "seconds": round(time.perf_counter() - started, 3),
    "processor_seconds": round(time.process_time() - cpu, 2),
    "peak_mb_beyond_imports": round((peak() - before) / 1e6),
}}))
"""


def measured(step: str, store: Path, budget: int) -> dict[str, Any]:
    """One step in a process of its own."""
    words = [sys.executable, "-c", PROGRAM.format(step=STEPS[step]), str(store), str(budget)]
    environment = {**os.environ, "KDCACHE_CACHE": str(store.parent / "cache")}
    done = subprocess.run(words, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    print(step, found, file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--memory", type=float, default=8.0, help="GB that a resident view may take")
    parser.add_argument("--folder", type=Path, default=None, help="a disk with 100 bytes a row free")
    asked = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kdcache-bench-", dir=asked.folder) as folder:
        store = Path(folder) / "store.zarr"
        rates: list[float] = []
        whole = seconds_of(lambda: rates.append(write(store, asked.rows)))
        files = [path.stat().st_size for path in store.rglob("*") if path.is_file()]
        figures: dict[str, Any] = {
            "rows": asked.rows,
            "bytes": sum(files),
            "files": len(files),
            "write_rows_per_s": round(rates[0]),
            "generate_write_seal_s": round(whole, 1),
        }
        print(figures, file=sys.stderr, flush=True)
        figures |= {step.replace(" ", "_"): measured(step, store, int(asked.memory * 1e9)) for step in STEPS}
    report("scale-rows", {**figures, "seconds": round(time.monotonic() - started)})


if __name__ == "__main__":
    main()
