"""`make bench`: every benchmark, one after another, each in a process of its own; JSON lines on stdout.

python -m benchmarks [NAME ...]
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

NOT_BENCHES = {
    "__init__",
    "__main__",
    "machine",
    "logits",
    "started_tasks",
    "live",
    "cifar20",
    "faithfulness_report",
    "faithfulness_gradient",
}
LONG = {"faithfulness", "scale_rows"}  # hours, or gigabytes of disk: run only when named


def main() -> int:
    """Run the named benchmarks, or all; the exit status is 1 if one failed."""
    known = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in NOT_BENCHES)
    unknown = [name for name in sys.argv[1:] if name not in known]
    if unknown:
        print(f"no benchmark {unknown[0]!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    failed = []
    for name in sys.argv[1:] or [name for name in known if name not in LONG]:
        print(f"== {name}", file=sys.stderr, flush=True)
        started = time.monotonic()
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
        print(f"== {name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
