"""Processes of a shared dump, to be killed: `python -m tests.faults.shared_process ROLE STORE ROWS VIEWS`.

The role is coordinator or worker; no torch, so that many can be started. The coordinator opens, shares, watches and
seals; a worker waits to join, then claims and writes blocks until none is left, and ends when its coordinator ends.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from kdcache.errors import LockedError, LostClaimError
from kdcache.specs import StoreManifest
from kdcache.store.joined_writer import JoinedWriter
from kdcache.store.writer import StoreWriter
from tests.store_cases import columns_of, manifest_of

RUN = "kills"
BLOCK_SECONDS = 0.03  # as if a teacher were asked


def coordinate(location: Path, manifest: StoreManifest) -> None:
    """Let workers write everything, then seal."""
    with StoreWriter.open(location, manifest) as writer:
        writer.share(RUN)
        while writer.pending:
            writer.refresh()
            writer.take_over_dead_claims()
            time.sleep(0.02)
        writer.seal(quality={"top1": 0.5})


def work(location: Path, manifest: StoreManifest) -> None:
    """Write blocks while there is a coordinator."""
    while (writer := JoinedWriter.join(location, run=RUN, beat_seconds=0.2)) is None:
        time.sleep(0.02)
    with writer:
        while views := writer.views_left():
            for view in views:
                while (block := writer.claim(view)) is not None:
                    time.sleep(BLOCK_SECONDS)
                    try:
                        writer.write_block(block, columns_of(manifest, block))
                    except LostClaimError:
                        continue
            time.sleep(0.02)


def main(role: str, location: str, rows: str, views: str) -> None:
    """Run one role."""
    manifest = manifest_of(rows=int(rows), views=int(views), classes=40)
    try:
        (coordinate if role == "coordinator" else work)(Path(location), manifest)
    except LockedError as error:
        sys.stderr.write(f"locked: {error.message}\n")
        sys.exit(6)


if __name__ == "__main__":
    main(*sys.argv[1:])
