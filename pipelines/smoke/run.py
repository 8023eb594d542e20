"""What `make demo` runs: the whole way from a teacher to a table of students, through the real command line.

About a minute on 2 cores; a second run finds the store and the finished students and takes seconds.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path("runs") / "smoke"
STORE = FOLDER / "store.zarr"
STUDENTS = FOLDER / "students"
METHODS = ("ce", "kd", "kd-topk", "kd-pt", "kd-sim", "kd-pt+sim")
SEEDS = (0, 1, 2)
EPOCHS = 15  # half the card's: the methods' order is the same (docs/log.md), and the demo takes a minute
# As it can be typed here: the console script beside this interpreter, which need not be on PATH.
KDCACHE = os.path.relpath(Path(sys.executable).parent / "kdcache")


def kdcache(*words: str, shown: bool = True) -> str:
    """Run one kdcache command; what it prints goes to the terminal, or is returned when not `shown`.

    Raises:
        SystemExit: the command failed; it has said why.
    """
    if shown:
        print(f"\n$ kdcache {shlex.join(words)}", flush=True)
    stdout = None if shown else subprocess.PIPE
    done = subprocess.run([sys.executable, "-m", "kdcache", *words], stdout=stdout, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    return done.stdout or ""


def main() -> None:
    """Dump, look, verify, distil, and say what came of it."""
    started = time.monotonic()
    kdcache("dump-teacher", "--out", str(STORE))
    kdcache("info", str(STORE))
    kdcache("verify", "--deep", str(STORE))
    students = ("--method", ",".join(METHODS), "--seed", ",".join(map(str, SEEDS)))
    budget = ("--epochs", str(EPOCHS), "--eval-every", str(EPOCHS))
    kdcache("distill", "--store", str(STORE), *students, *budget, "--out", str(STUDENTS), "--resume")
    print(closing_words(json.loads(kdcache("info", str(STORE), "--json", shown=False)), time.monotonic() - started))


def closing_words(info: Mapping[str, Any], seconds: float) -> str:
    """The store's size against full logits, where things are, and what to type next.

    Args:
        info: the document of `kdcache info --json`.
        seconds: wall time of the whole run.
    """
    stored, full = info["bytes_on_disk"], info["full_logits_bytes"]
    return f"""
Store      {stored:,} bytes; the teacher's logits in float32 would be {full:,} ({full / stored:.1f} times as much)
Results    {STORE} (store), {STUDENTS}{os.sep} (students: result.json, metrics.jsonl, weights)
Time       {seconds:.0f} s
Next       {KDCACHE} distill --store {STORE} --method kd-topk --topk 5 --temperature 2
           {KDCACHE} report {STUDENTS}
           {KDCACHE} methods; {KDCACHE} datasets; docs/quickstart.md
"""


if __name__ == "__main__":
    main()
