"""`dump-teacher --dry-run`: what a dump would cost, from a short probe of the real teacher, data and codec.

Nothing is left behind: the probe's rows go through a real store in a temporary folder, so the bytes are measured ones.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from kdcache.devices import choose_device
from kdcache.dump_plan import DumpConfig, DumpPlan, new_manifest, plan_dump
from kdcache.progress import counted, duration
from kdcache.specs import StoreManifest
from kdcache.store.blocks import block_rows_for
from kdcache.store.features import FeatureColumn, feature_columns
from kdcache.store.info import describe
from kdcache.store.writer import StoreWriter
from kdcache.teacher_run import TeacherQuality, TeacherRun

PROBE_ROWS = 2048


@dataclass(frozen=True, kw_only=True)
class DumpEstimate:
    """What a dump would be.

    Attributes:
        store: where it would go, or the store that already covers the request.
        covered: whether a covering store was found; nothing would be run.
        rows: N; views: V; blocks: in all.
        bytes: expected size on disk, from the probe's bytes per row.
        seconds: expected wall time of the forward passes, from the probe.
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
                f"time      {duration(self.seconds)} at {self.rows_per_second:,.0f} rows/s",
                f"teacher   top-1 {self.top1:.1%}, NLL {self.nll:.3f} nats on the probe",
            )
        )


def estimate_dump(config: DumpConfig) -> DumpEstimate:
    """Rows, bytes, key, reuse and time of a dump, without making it.

    Raises:
        ConfigError, NotFoundError, IncompatibleError, NumericError: as `dump_teacher` would.
    """
    plan = plan_dump(config)
    if plan.found is not None:
        size = int(describe(plan.location)["bytes_on_disk"])
        per_row = size / (plan.data.num_rows * config.views)
        return _estimate(config, plan, plan.found.manifest, per_row, 0.0, size, None)
    teacher = plan.teacher.load(plan.source, choose_device(config.device))
    manifest = new_manifest(config, plan, teacher)
    run = TeacherRun.for_store(manifest, plan.source, teacher, plan.policy, decode_workers=config.decode_workers)
    quality = run.probe(batch_size=config.batch_size)
    count = min(PROBE_ROWS, plan.data.num_rows)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="kdcache-probe-") as folder:
        probe = replace(
            manifest,
            num_views=1,
            block_rows=min(manifest.block_rows, PROBE_ROWS),
            dataset=replace(plan.data, num_rows=count),
        )
        location = Path(folder) / "probe.zarr"
        with StoreWriter.open(location, probe, static=teacher.static) as writer:
            run.fill(writer, batch_size=config.batch_size)
            seconds = time.perf_counter() - started
            writer.seal()
        sizes = describe(location)["arrays"]
    static = sum(sizes[name]["bytes_on_disk"] for name in teacher.static)
    per_row = (
        sum(item["bytes_on_disk"] for name, item in sizes.items() if name not in teacher.static and name != "commit")
        / count
    )
    blocks = plan.data.num_rows * config.views / manifest.block_rows
    size = round(static + per_row * plan.data.num_rows * config.views + 32 * blocks)
    return _estimate(config, plan, manifest, per_row, count / seconds, size, quality)


def _estimate(
    config: DumpConfig,
    plan: DumpPlan,
    manifest: StoreManifest,
    per_row: float,
    rate: float,
    size: int,
    quality: TeacherQuality | None,
) -> DumpEstimate:
    rows = plan.data.num_rows * config.views
    block_rows = block_rows_for(plan.data.num_rows)
    return DumpEstimate(
        store=plan.location,
        store_key=plan.key,
        covered=plan.found is not None,
        rows=plan.data.num_rows,
        views=config.views,
        topk=plan.topk,
        blocks=-(-plan.data.num_rows // block_rows) * config.views,
        bytes=size,
        bytes_per_row=per_row,
        rows_per_second=rate,
        seconds=rows / rate if rate else 0.0,
        top1=quality.top1 if quality else None,
        nll=quality.nll if quality else None,
        features=feature_columns(manifest),
    )
