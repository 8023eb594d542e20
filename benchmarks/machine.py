"""What a figure needs beside it: where, on which commit, with which libraries; and medians of repeated runs."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]


def circumstances() -> dict[str, Any]:
    """Commit (with "+" when the tree is dirty), processor, cores, torch."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip() or "unknown",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 2),
    }


def processor_name() -> str:
    """Model name from /proc/cpuinfo, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def seconds_of(action: Callable[[], object]) -> float:
    """Wall time of one call, in seconds."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def paired_seconds(
    first: Callable[[], object], second: Callable[[], object], *, repeats: int
) -> list[tuple[float, float]]:
    """Wall times of two actions, run in turn (the order swaps each time) after one warm-up of each."""
    first()
    second()
    pairs = []
    for repeat in range(repeats):
        if repeat % 2:
            b = seconds_of(second)
            a = seconds_of(first)
        else:
            a = seconds_of(first)
            b = seconds_of(second)
        pairs.append((a, b))
    return pairs


def median_ratio(pairs: list[tuple[float, float]]) -> float:
    """Median over repeats of first / second: noise that hits both halves of a pair cancels."""
    return statistics.median(a / b for a, b in pairs)


def median_interval(values: list[float], *, resamples: int = 2000) -> tuple[float, float]:
    """95 % interval of the median by the percentile bootstrap (seeded): how far the same run again may lie."""
    random = np.random.default_rng(0)
    drawn = np.median(random.choice(np.asarray(values), size=(resamples, len(values))), axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def report(bench: str, figures: object) -> None:
    """Print one JSON document: bench id, circumstances, figures."""
    print(json.dumps({"bench": bench, **circumstances(), "figures": figures}, indent=1))
