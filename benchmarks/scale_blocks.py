"""What the metadata of a store of very many blocks costs: id `scale-blocks`.

One view of `--blocks` blocks, in a temporary folder, written and read by the code that real stores go through. Only the
array data is left out. Commit records are files; `--records` of them are made, without their flushes (a flush each is
measured apart), and one array's chunk files, empty, for the listing. Each step runs in a process of its own, without
torch; its peak memory is that beyond its imports. Seconds are given on the clock and of the processor (`_cpu`).

    python -m benchmarks.scale_blocks [--blocks 1000000] [--records 20000]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kdcache.cost_model import planned_manifest
from kdcache.specs import StoreManifest, with_changes
from kdcache.store import array_writer, ledger
from kdcache.store.blocks import MAX_BLOCK_ROWS, BlockId, all_blocks, block_at
from kdcache.store.files import json_bytes, make_folder
from kdcache.store.joined_writer import JoinedWriter
from kdcache.store.layout import layout_of
from kdcache.store.manifest_file import write_manifest
from kdcache.store.reader import open_reader
from kdcache.store.session import SESSION_FILE
from kdcache.store.verify import unexpected_files
from kdcache.store.writer import StoreWriter

ROOT = Path(__file__).resolve().parents[1]
CLASSES, TOPK = 50_000, 64
CLAIMS = 20
LISTED = "label_log_prob"  # the array that gets empty chunk files
Found = dict[str, Any]


def manifest_of(blocks: int) -> StoreManifest:
    """One view of so many whole blocks of token rows."""
    planned = planned_manifest(rows=blocks * MAX_BLOCK_ROWS, classes=CLASSES, topk=TOPK)
    return with_changes(planned, store_id=ledger.store_id_of(planned))


def timed(found: Found, name: str, action: Callable[[], object], *, times: int = 1) -> None:
    """Add the milliseconds of one of `times` calls to the figures, on the clock and of the processor."""
    started, worked = time.perf_counter(), time.process_time()
    for _ in range(times):
        action()
    found[f"{name}_ms"] = 1000 / times * (time.perf_counter() - started)
    found[f"{name}_cpu_ms"] = 1000 / times * (time.process_time() - worked)


def create(root: Path, blocks: int) -> Found:
    """A new store: a coordinator opens and shares it, claims alone; a worker joins and claims."""
    manifest, found = manifest_of(blocks), Found()
    writers: list[StoreWriter] = []
    joined: list[JoinedWriter | None] = []
    timed(found, "open_new", lambda: writers.append(StoreWriter.open(root, manifest)))
    with writers[0] as writer:
        timed(found, "share", lambda: writer.share("bench"))
        found["session_bytes"] = (root / SESSION_FILE).stat().st_size
        timed(found, "claim_alone", lambda: writer.claim(0), times=CLAIMS)
        timed(found, "join", lambda: joined.append(JoinedWriter.join(root, run="bench")))
        worker = joined[0]
        assert worker is not None
        with worker:
            timed(found, "worker_views_left", worker.views_left)
            timed(found, "worker_claim", lambda: worker.claim(0), times=CLAIMS)
    return found


def seal(root: Path, blocks: int) -> Found:
    """Folding all records into `commit`, the root digest, and the two last writes."""
    manifest = manifest_of(blocks)
    layout = layout_of(manifest)
    static = ledger.static_digest(manifest.store_id, {})
    records = {(block.view, block.block): record_of(block) for block in all_blocks(manifest)}
    found: Found = {}

    def fold() -> None:
        rows = ledger.commit_array(layout["commit"], manifest, static, records)
        sealed = with_changes(manifest, complete=True)
        array_writer.write_commit(root, layout["commit"], rows)
        write_manifest(root, with_changes(sealed, root_digest=ledger.root_digest(sealed, rows)))

    timed(found, "fold_and_seal", fold)
    found["commit_bytes"] = (root / layout["commit"].chunk_path(0, 0)).stat().st_size
    return found


def read(root: Path, blocks: int) -> Found:
    """Opening the sealed store."""
    found: Found = {}
    timed(found, "open_sealed", lambda: open_reader(root), times=3)
    return found


def records(root: Path, blocks: int) -> Found:
    """Commit records as files: making, listing, reading them; one block committed beside them."""
    manifest, found = manifest_of(blocks), Found()
    make_folder(root)
    ledger.make_ledger_folder(root)
    timed(found, "write_without_flush", lambda: write_records(root, manifest, all_blocks(manifest)))
    timed(found, "commit_one_durably", lambda: ledger.write_record(root, manifest, *last(manifest)))
    timed(found, "list", lambda: ledger.recorded_places(root))
    found["read"] = 0
    timed(found, "read_all", lambda: found.update(read=len(ledger.read_records(root, manifest))))
    return found


def resume(root: Path, blocks: int) -> Found:
    """`StoreWriter.open` where every record is there and no chunk is: it looks for each block and finds it missing."""
    found: Found = {}

    def opened() -> None:
        with StoreWriter.open(root, manifest_of(blocks)) as writer:
            found["pending"] = len(writer.pending)

    timed(found, "open_to_continue", opened)
    return found


def listing(root: Path, blocks: int) -> Found:
    """`verify`'s listing over the chunk files of one array (the others cost as much each); removing the records."""
    layout, found = layout_of(manifest_of(blocks)), Found()
    folder = root / layout[LISTED].chunk_path(0)
    make_folder(folder)
    for number in range(blocks):
        (folder / str(number)).touch()
    timed(found, "list_one_array", lambda: found.update(strangers=len(list(unexpected_files(root, layout)))))
    timed(found, "remove_work_folder", lambda: shutil.rmtree(root / ".kdcache"))
    return found


STEPS: dict[str, Callable[[Path, int], Found]] = {
    step.__name__: step for step in (create, seal, read, records, resume, listing)
}
WITHOUT_RECORDS = ("create", "seal", "read")


def record_of(block: BlockId) -> ledger.Record:
    """A record like others."""
    return ledger.Record(sha256=hashlib.sha256(str(block.block).encode()).hexdigest(), rounding=1e-5)


def last(manifest: StoreManifest) -> tuple[BlockId, ledger.Record]:
    """The last block and its record."""
    block = block_at(manifest, 0, manifest.blocks_per_view - 1)
    return block, record_of(block)


def write_records(root: Path, manifest: StoreManifest, blocks: Iterable[BlockId]) -> None:
    """Records as `ledger.write_record` writes them, but for the flushes."""
    folder = root / ledger.LEDGER_FOLDER
    for block in blocks:
        record = record_of(block)
        value = {
            "store_id": manifest.store_id, "view": 0, "block": block.block, "sha256": record.sha256,
            "rounding": record.rounding,
        }  # fmt: skip
        (folder / f"0-{block.block}.json").write_bytes(json_bytes(value))


def _peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def in_new_process(step: str, root: Path, blocks: int) -> Found:
    """One step's figures."""
    words = [sys.executable, "-m", "benchmarks.scale_blocks", "--step", step, "--folder", str(root)]
    done = subprocess.run([*words, "--blocks", str(blocks)], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found: Found = json.loads(done.stdout)
    print(step, blocks, found, file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        before = _peak()
        found = STEPS[asked.step](asked.folder, asked.blocks)
        rounded = {name: float(f"{value:.3g}") for name, value in found.items()}
        print(json.dumps({**rounded, "peak_mb_beyond_imports": round((_peak() - before) / 1e6)}))
        return
    from benchmarks.machine import report  # imports torch, which no step shall pay for

    with tempfile.TemporaryDirectory(prefix="kdcache-bench-") as folder:
        figures = {}
        for step in STEPS:
            large = step in WITHOUT_RECORDS
            blocks = asked.blocks if large else asked.records
            place = Path(folder) / ("large.zarr" if large else "records.zarr")
            figures[step] = {"blocks": blocks, **in_new_process(step, place, blocks)}
    report("scale-blocks", figures)


if __name__ == "__main__":
    main()
