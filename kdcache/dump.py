"""`dump-teacher`: run a teacher once over a data set and keep its opinion in a sealed store.

Order of work: a plan (`dump_plan`), and only if no store covers it build the teacher, forward the missing blocks, seal.
The store's promises (commit, resume, locking) are `store.writer`'s; this module decides what to ask the teacher and
whether its answers are worth keeping.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdcache.canonical import to_json
from kdcache.devices import choose_device, warn_if_amp_is_slow
from kdcache.dump_plan import DumpConfig, DumpPlan, check_continued_views, new_manifest, plan_dump
from kdcache.progress import note
from kdcache.specs import StoreManifest
from kdcache.store.blocks import BlockId, blocks_of_view
from kdcache.store.remote_dump import written_at
from kdcache.store.writer import StoreWriter
from kdcache.teacher_run import TeacherQuality, TeacherRun
from kdcache.views.mixing import mixes, recorded_mixing

__all__ = ["DumpConfig", "DumpResult", "dump_teacher", "stored_quality"]


@dataclass(frozen=True, kw_only=True)
class DumpResult:
    """What `dump_teacher` did.

    Attributes:
        store: path or URL of the sealed store.
        reused: True when a covering store was found and no teacher was run.
        rows_written: rows forwarded in this call.
        seconds: wall time of the forward passes, writing and sealing.
        quality: the teacher's top-1 and NLL (nats) on the stored rows.
    """

    store: str
    store_key: str
    reused: bool
    rows_written: int
    seconds: float
    quality: Mapping[str, Any] = field(default_factory=dict)
    root_digest: str = ""


def dump_teacher(config: DumpConfig) -> DumpResult:
    """Dump a teacher's opinion of a data set into a store, or find the store that already holds it.

    Raises:
        ConfigError, NotFoundError, IncompatibleError: the request cannot be met; nothing was written.
        WeakTeacherError: the teacher is near chance on sampled rows; nothing was written.
        NumericError: NaN or infinite logits; the message names the rows and the store stays unfinished.
        LockedError: another process writes this store.
    """
    plan = plan_dump(config)
    if plan.found is not None:
        note(f"store {plan.location} already covers this request; no teacher was built")
        return _result(plan.location, plan.found.manifest, reused=True, rows=0, seconds=0.0)
    check_continued_views(plan)
    started = time.perf_counter()
    teacher = plan.teacher.load(plan.source, choose_device(config.device))
    warn_if_amp_is_slow(config.amp, teacher.device)
    manifest = new_manifest(config, plan, teacher)
    run = TeacherRun.for_store(manifest, plan.source, teacher, plan.policy, workers=config.workers)
    quality = run.probe(batch_size=config.batch_size)
    note(f"teacher on {quality.rows} sampled rows: top-1 {quality.top1:.1%}, NLL {quality.nll:.3f} nats")
    quality.check(plan.data, allow_weak=config.allow_weak_teacher)
    with (
        written_at(plan.location, manifest) as folder,
        StoreWriter.open(folder, manifest, static=teacher.static) as writer,
    ):
        pending = writer.pending
        _announce(writer, plan, pending)
        run.fill(writer, pending, batch_size=int(writer.manifest.creator["batch_size"]))
        final = stored_quality(writer)
        final.check(plan.data, allow_weak=config.allow_weak_teacher)
        sealed = writer.seal(quality=to_json(final))
    rows = sum(block.stop - block.start for block in pending)
    return _result(plan.location, sealed, reused=False, rows=rows, seconds=time.perf_counter() - started)


def _announce(writer: StoreWriter, plan: DumpPlan, pending: tuple[BlockId, ...]) -> None:
    manifest = writer.manifest
    blocks = manifest.num_views * manifest.blocks_per_view
    rows = sum(block.stop - block.start for block in pending)
    if len(pending) < blocks:
        note(f"continuing {plan.location}: {blocks - len(pending)} of {blocks} blocks are there, {rows:,} rows to go")
    else:
        note(
            f"dumping {plan.data.name} ({plan.data.split}): {plan.data.num_rows:,} rows x {manifest.num_views} views, "
            f"top {manifest.codec.topk} of {plan.data.num_classes} classes -> {plan.location}"
        )


def _result(location: str, manifest: StoreManifest, *, reused: bool, rows: int, seconds: float) -> DumpResult:
    return DumpResult(
        store=location,
        store_key=manifest.store_key,
        reused=reused,
        rows_written=rows,
        seconds=seconds,
        quality=dict(manifest.quality),
        root_digest=manifest.root_digest,
    )


def stored_quality(writer: StoreWriter) -> TeacherQuality:
    """The teacher's quality over all committed rows of view 0, read back from the store.

    Of mixed rows the label of the larger share counts, and both labels' log-probabilities weighted by lambda.
    """
    kept = ("topk_index", "label", "label_log_prob", "view_params", "partner_label_log_prob")
    parts = []
    for block in blocks_of_view(writer.manifest, 0):
        columns = writer.read_block(block)
        parts.append(
            {name: columns[name] for name in kept if name in columns} | {"topk_index": columns["topk_index"][:, 0]}
        )
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    label, log_prob = whole["label"], whole["label_log_prob"].astype(np.float64)
    if mixes(writer.manifest.views) and "partner_label_log_prob" in whole:
        mix = recorded_mixing(writer.manifest.views, whole["view_params"], num_rows=len(label))
        label = np.where(mix.weight < 0.5, label[mix.partner], label)
        log_prob = mix.weight * log_prob + (1 - mix.weight) * whole["partner_label_log_prob"].astype(np.float64)
    rows = len(label)
    return TeacherQuality(rows=rows, top1=int((whole["topk_index"] == label).sum()) / rows, nll=-float(log_prob.mean()))
