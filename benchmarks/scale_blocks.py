"""What the metadata of a store of very many blocks costs: id `scale-blocks`.

One view of `--blocks` blocks, in a temporary folder, written and read by the code that real stores go through. Only the
array data is left out: commit records are written without their flushes (a flush each would take hours and is
measured apart), one array has empty chunk files for the listing. Each step runs in a process of its own; its peak
memory is given beyond that of the imports.

    python -m benchmarks.scale_blocks [--blocks 100000]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, report, seconds_of
from benchmarks.size import manifest_for
from kdcache.specs import StoreManifest, with_changes
from kdcache.store import array_writer, ledger
from kdcache.store.blocks import MAX_BLOCK_ROWS, all_blocks, block_at
from kdcache.store.joined_writer import JoinedWriter
from kdcache.store.layout import layout_of
from kdcache.store.manifest_file import write_manifest
from kdcache.store.reader import open_reader
from kdcache.store.session import SESSION_FILE, read_session
from kdcache.store.verify import unexpected_files
from kdcache.store.writer import StoreWriter

CLASSES, TOPK = 50_000, 64
CLAIMS = 20
LISTED = "label_log_prob"  # the array that gets empty chunk files
Found = dict[str, Any]


def manifest_of(blocks: int) -> StoreManifest:
    """One view of so many whole blocks of token rows."""
    small = manifest_for(MAX_BLOCK_ROWS, CLASSES, topk=TOPK, precision="default")
    data = with_changes(small, dataset=_rows(small, blocks * MAX_BLOCK_ROWS))
    return with_changes(data, store_id=ledger.store_id_of(data))


def _rows(manifest: StoreManifest, rows: int) -> Any:
    return type(manifest.dataset)(**{**vars(manifest.dataset), "num_rows": rows})


def create(root: Path, blocks: int) -> Found:
    """A new store: the coordinator opens and shares it, a worker joins and claims, half of the blocks being done."""
    manifest = manifest_of(blocks)
    writers: list[StoreWriter] = []
    joined: list[JoinedWriter | None] = []
    seconds: Found = {"open_new_s": seconds_of(lambda: writers.append(StoreWriter.open(root, manifest)))}
    writer = writers[0]
    with writer:
        seconds["share_s"] = seconds_of(lambda: writer.share("bench"))
        seconds["session_bytes"] = (root / SESSION_FILE).stat().st_size
        seconds["write_records_s"] = seconds_of(lambda: _records(root, manifest, range(blocks // 2)))
        seconds["commit_one_durably_ms"] = 1000 * seconds_of(
            lambda: ledger.write_record(root, manifest, block_at(manifest, 0, blocks // 2), _record(blocks // 2))
        )
        seconds["coordinator_first_look_s"] = seconds_of(writer.refresh)
        seconds["coordinator_next_look_s"] = seconds_of(writer.refresh)
        seconds["claim_alone_ms"] = 1000 / CLAIMS * seconds_of(lambda: [writer.claim(0) for _ in range(CLAIMS)])
        seconds["join_s"] = seconds_of(lambda: joined.append(JoinedWriter.join(root, run="bench")))
        worker = joined[0]
        assert worker is not None
        with worker:
            seconds["worker_views_left_s"] = seconds_of(worker.views_left)
            seconds["worker_claim_ms"] = 1000 / CLAIMS * seconds_of(lambda: [worker.claim(0) for _ in range(CLAIMS)])
    seconds["read_session_s"] = seconds_of(lambda: read_session(root))
    return seconds


def resume(root: Path, blocks: int) -> Found:
    """Every block is recorded: what the ledger says, and a command that continues (its blocks' bytes are not there)."""
    manifest = manifest_of(blocks)
    rest = seconds_of(lambda: _records(root, manifest, range(blocks // 2, blocks)))
    found: Found = {"write_rest_s": rest}
    found["list_records_s"] = seconds_of(lambda: ledger.recorded_places(root))
    records: dict[tuple[int, int], ledger.Record] = {}
    found["read_records_s"] = seconds_of(lambda: records.update(ledger.read_records(root, manifest)))
    assert len(records) == blocks
    return found


def reopen(root: Path, blocks: int) -> Found:
    """`StoreWriter.open` where every record is there and no chunk is: it looks for each block and finds it missing."""

    def opened() -> None:
        with StoreWriter.open(root, manifest_of(blocks)) as writer:
            assert len(writer.pending) == blocks

    return {"open_to_continue_s": seconds_of(opened)}


def seal(root: Path, blocks: int) -> Found:
    """Folding the records into `commit`, the root digest, and the two last writes."""
    manifest = manifest_of(blocks)
    layout = layout_of(manifest)
    static = ledger.static_digest(manifest.store_id, {})
    records = {(block.view, block.block): _record(block.block) for block in all_blocks(manifest)}
    found: Found = {}

    def fold() -> None:
        rows = ledger.commit_array(layout["commit"], manifest, static, records)
        sealed = with_changes(manifest, complete=True)
        array_writer.write_commit(root, layout["commit"], rows)
        write_manifest(root, with_changes(sealed, root_digest=ledger.root_digest(sealed, rows)))

    found["fold_and_seal_s"] = seconds_of(fold)
    found["commit_bytes"] = (root / layout["commit"].chunk_path(0, 0)).stat().st_size
    return found


def read(root: Path, blocks: int) -> Found:
    """Opening the sealed store."""
    return {"open_sealed_s": seconds_of(lambda: open_reader(root)), "again_s": seconds_of(lambda: open_reader(root))}


def listing(root: Path, blocks: int) -> Found:
    """`verify`'s listing over the chunk files of one array (the other arrays cost as much each)."""
    layout = layout_of(manifest_of(blocks))
    folder = root / layout[LISTED].chunk_path(0)
    folder.mkdir(parents=True, exist_ok=True)
    made = seconds_of(lambda: [os.close(os.open(folder / str(number), os.O_CREAT)) for number in range(blocks)])
    strangers: list[Any] = []
    taken = seconds_of(lambda: strangers.extend(unexpected_files(root, layout)))
    assert not strangers, strangers[:3]
    return {"make_files_s": made, "list_one_array_s": taken}


def clear(root: Path, blocks: int) -> Found:
    """What removing the work folder costs, which every sealed store does once."""
    return {"remove_work_folder_s": seconds_of(lambda: shutil.rmtree(root / ".kdcache"))}


STEPS: dict[str, Callable[[Path, int], Found]] = {
    step.__name__: step for step in (create, resume, reopen, seal, read, listing, clear)
}


def _record(number: int) -> ledger.Record:
    return ledger.Record(sha256=hashlib.sha256(str(number).encode()).hexdigest(), rounding=1e-5)


def _records(root: Path, manifest: StoreManifest, numbers: Iterable[int]) -> None:
    """The records of blocks as `ledger.write_record` writes them, but for the flushes."""
    folder = root / ledger.LEDGER_FOLDER
    for number in numbers:
        record = _record(number)
        value = {
            "store_id": manifest.store_id, "view": 0, "block": number, "sha256": record.sha256,
            "rounding": record.rounding,
        }  # fmt: skip
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        (folder / f"0-{number}.json").write_text(text)


def _peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def in_new_process(step: str, root: Path, blocks: int) -> Found:
    """One step's figures."""
    words = [sys.executable, "-m", "benchmarks.scale_blocks", "--step", step, "--folder", str(root)]
    done = subprocess.run(
        [*words, "--blocks", str(blocks)], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=3600
    )
    found: Found = json.loads(done.stdout)
    print(step, found, file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=100_000)
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        before = _peak()
        found = STEPS[asked.step](asked.folder, asked.blocks)
        rounded = {name: float(f"{value:.3g}") for name, value in found.items()}
        print(json.dumps({**rounded, "peak_mb_beyond_imports": round((_peak() - before) / 1e6)}))
        return
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kdcache-bench-") as folder:
        figures = {step: in_new_process(step, Path(folder) / "store.zarr", asked.blocks) for step in STEPS}
    report("scale-blocks", {"blocks": asked.blocks, **figures, "seconds": round(time.monotonic() - started)})


if __name__ == "__main__":
    main()
