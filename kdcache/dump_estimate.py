"""`dump-teacher --dry-run`: what a dump would cost, from a short probe of the real teacher, data and codec.

The probe's rows go through a real store in a temporary folder, which is removed; `cost_model` turns its bytes into
those of the whole, chunk by chunk and file by file.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdcache.cost_model import StoreSize, measured_rates, store_size
from kdcache.cost_of_use import dump_time, push_requests
from kdcache.devices import choose_device
from kdcache.dump_plan import DumpConfig, DumpPlan, new_manifest, plan_dump
from kdcache.progress import counted, duration
from kdcache.specs import StoreManifest
from kdcache.store.features import FeatureColumn, feature_columns
from kdcache.store.info import describe
from kdcache.store.writer import StoreWriter
from kdcache.teacher_run import PROBE_RUN, TeacherQuality, TeacherRun, probe_rows
from kdcache.teachers import LoadedTeacher

PROBE_ROWS = 2048


@dataclass(frozen=True, kw_only=True)
class DumpEstimate:
    """What a dump would be.

    Attributes:
        store: where it would go, or the store that already covers the request.
        covered: whether a covering store was found; nothing would be run.
        rows: N; views: V; blocks: in all.
        bytes: expected size on disk, from the probe's bytes per row; of a covering store, what it takes.
        files: of the store, or objects where it goes to a URL.
        requests: that bring it to an object store.
        resident_bytes: of one view in a student's memory.
        seconds: expected wall time, from the probe's rows per second and what one core writes (`cost_model.dump_time`).
        top1: the teacher's accuracy on the probe rows; None when nothing was run.
        features: the feature arrays, with their bytes before compression.
    """

    store: str
    store_key: str
    covered: bool
    rows: int
    views: int
    topk: int
    blocks: int
    bytes: int
    bytes_per_row: float
    files: int
    requests: int
    resident_bytes: int
    rows_per_second: float
    seconds: float
    top1: float | None = None
    nll: float | None = None
    features: tuple[FeatureColumn, ...] = ()

    def __str__(self) -> str:
        if self.covered:
            return f"covered   {self.store} already holds this; nothing would be run\nkey       {self.store_key}"
        return "\n".join(
            (
                f"store     {self.store}",
                f"key       {self.store_key}",
                f"rows      {self.rows:,} x {counted(self.views, 'view')}, top {self.topk}, {self.blocks} blocks",
                f"bytes     {self.bytes:,} ({self.bytes_per_row:.1f} per row and view)",
                *(f"          {column}" for column in self.features),
                f"files     {self.files:,}, or {self.requests:,} requests to an object store",
                f"memory    {self.resident_bytes:,} bytes for one view in a student's process",
                f"time      {duration(self.seconds)} at {self.rows_per_second:,.0f} rows/s",
                f"teacher   top-1 {self.top1:.1%}, NLL {self.nll:.3f} nats on the probe",
            )
        )


def estimate_dump(config: DumpConfig) -> DumpEstimate:
    """Rows, bytes, objects, key, reuse and time of a dump, without making it.

    Raises:
        ConfigError, NotFoundError, IncompatibleError, NumericError: as `dump_teacher` would.
    """
    plan = plan_dump(config)
    if plan.found is not None:
        on_disk = describe(plan.location)["bytes_on_disk"]  # None on a web server, which lists nothing
        size = store_size(plan.found.manifest)
        whole = size.bytes if on_disk is None else int(on_disk)
        return _estimate(config, plan, plan.found.manifest, size, whole, rate=0.0, quality=None)
    teacher = plan.teacher.load(plan.source, choose_device(config.device))
    manifest = new_manifest(config, plan, teacher)
    run = TeacherRun.for_store(manifest, plan.source, teacher, plan.policy, decode_workers=config.decode_workers)
    quality = run.probe(batch_size=config.batch_size)
    rows = rows_to_measure(manifest)
    batches = [rows[start : start + config.batch_size] for start in range(0, len(rows), config.batch_size)]
    started = time.perf_counter()
    columns = run.columns(batches, view=0)
    seconds = time.perf_counter() - started
    probe, sizes = _written(manifest, teacher, columns)
    static = {name: sizes[name] for name in teacher.static}
    size = store_size(manifest, measured_rates(probe, sizes, manifest), static_bytes=static)
    return _estimate(config, plan, manifest, size, size.bytes, rate=len(rows) / seconds, quality=quality)


def rows_to_measure(manifest: StoreManifest) -> NDArray[np.int64]:
    """Rows whose bytes stand for all: whole blocks, evenly spread; runs of rows where a block is too large for that.

    A block that a data set sorted by class fills with one class is smaller than others, and neighbours are alike.
    """
    rows, block = manifest.dataset.num_rows, manifest.block_rows
    if rows <= PROBE_ROWS:
        return np.arange(rows, dtype=np.int64)
    if block > PROBE_ROWS:
        return probe_rows(rows, PROBE_ROWS, run=PROBE_RUN)
    whole = rows // block  # the last one may be short
    chosen = np.unique(np.linspace(0, whole - 1, PROBE_ROWS // block).astype(np.int64))
    return (chosen[:, None] * block + np.arange(block)).reshape(-1)


def _written(
    manifest: StoreManifest, teacher: LoadedTeacher, columns: dict[str, NDArray[np.generic]]
) -> tuple[StoreManifest, dict[str, int]]:
    """A store of the measured rows: its manifest, and the bytes of each array's chunks."""
    probe = replace(
        manifest,
        num_views=1,
        block_rows=min(manifest.block_rows, PROBE_ROWS),
        dataset=replace(manifest.dataset, num_rows=len(columns["label"])),
    )
    with tempfile.TemporaryDirectory(prefix="kdcache-probe-") as folder:
        location = Path(folder) / "probe.zarr"
        with StoreWriter.open(location, probe, static=teacher.static) as writer:
            for block in writer.pending:
                writer.write_block(block, {name: part[block.start : block.stop] for name, part in columns.items()})
            writer.seal()
        names = describe(location)["arrays"]
        sizes = {
            name: sum(path.stat().st_size for path in (location / name / "c").rglob("*") if path.is_file())
            for name in names
        }
    return probe, sizes


def _estimate(
    config: DumpConfig,
    plan: DumpPlan,
    manifest: StoreManifest,
    size: StoreSize,
    on_disk: int,
    *,
    rate: float,
    quality: TeacherQuality | None,
) -> DumpEstimate:
    cells = plan.data.num_rows * config.views
    return DumpEstimate(
        store=plan.location,
        store_key=plan.key,
        covered=plan.found is not None,
        rows=plan.data.num_rows,
        views=config.views,
        topk=plan.topk,
        blocks=manifest.num_views * manifest.blocks_per_view,
        bytes=on_disk,
        bytes_per_row=on_disk / cells,
        files=size.objects,
        requests=push_requests(manifest, size).total,
        resident_bytes=size.resident_bytes,
        rows_per_second=rate,
        seconds=dump_time(manifest, rows_per_second=rate, workers=config.workers).total if rate else 0.0,
        top1=quality.top1 if quality else None,
        nll=quality.nll if quality else None,
        features=feature_columns(manifest),
    )
