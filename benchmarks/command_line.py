"""How long people wait for `kdcache --help` and `kdcache info`: bench id `command-line`.

Whole processes, page cache warm, median. The bare interpreter and `import torch` stand beside them for scale.

    python -m benchmarks.command_line [--repeats 9]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import report, seconds_of


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "sample.zarr")
        kdcache = [sys.executable, "-m", "kdcache"]
        subprocess.run([*kdcache, "-q", "dump-teacher", "--out", store], check=True, stdout=subprocess.DEVNULL)
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import torch": [sys.executable, "-c", "import torch"],
            "kdcache --help": [*kdcache, "--help"],
            "kdcache info": [*kdcache, "info", store],
            "kdcache verify": [*kdcache, "verify", store],
        }
        figures = {name: round(median_seconds(command, repeats), 3) for name, command in commands.items()}
    report("command-line", figures)


def median_seconds(command: list[str], repeats: int) -> float:
    """Median wall time of a process, after one warm-up."""

    def once() -> object:
        return subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    once()
    return statistics.median(seconds_of(once) for _ in range(repeats))


if __name__ == "__main__":
    main()
