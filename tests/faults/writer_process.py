"""A writer in its own process, to be killed: `python -m tests.faults.writer_process STORE ROWS VIEWS`.

It prints "ready" when the store is open, then writes what is pending and seals.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from kdcache.store.writer import StoreWriter
from tests.store_cases import columns_of, manifest_of


def main(location: str, rows: str, views: str) -> None:
    """Write the store of `tests.store_cases.manifest_of` to the end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to Ctrl-C
    manifest = manifest_of(rows=int(rows), views=int(views), classes=40)
    with StoreWriter.open(Path(location), manifest) as writer:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        for block in writer.pending:
            writer.write_block(block, columns_of(manifest, block))
        writer.seal(quality={"top1": 0.5})


if __name__ == "__main__":
    main(*sys.argv[1:])
