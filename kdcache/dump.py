"""`dump-teacher`: run a teacher once over a data set and keep its opinion in a sealed store.

Order of work: a plan (`dump_plan`), and only if no store covers it build the teacher, forward the missing blocks, seal.
The store's promises (commit, resume, locking) are `store.writer`'s; this module decides what to ask the teacher and
whether its answers are worth keeping.
"""

from __future__ import annotations

import gc
import math
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.canonical import to_json
from kdcache.coordination import Coordinator, share_with_team
from kdcache.devices import choose_device, spread_over_devices, warn_if_amp_is_slow
from kdcache.dump_plan import DumpConfig, DumpPlan, check_continued_views, new_manifest, plan_dump
from kdcache.dump_worker import WorkOrder, for_elsewhere, help_first_rank, report_of
from kdcache.errors import ConfigError, CorruptStoreError
from kdcache.parallel.dask_team import DaskTeam
from kdcache.parallel.threads import usable_cores
from kdcache.progress import Progress, counted, is_quiet, note, set_quiet
from kdcache.ranks import Rank
from kdcache.specs import StoreManifest
from kdcache.store.blocks import BlockId, blocks_of_view
from kdcache.store.features import feature_columns
from kdcache.store.joined_writer import JoinedWriter
from kdcache.store.location import Location
from kdcache.store.manifest_file import read_manifest
from kdcache.store.remote_dump import written_at
from kdcache.store.writer import StoreWriter
from kdcache.teacher_run import TeacherQuality, TeacherRun
from kdcache.views.mixing import mixes, recorded_mixing
from kdcache.worker_processes import ProcessTeam
from kdcache.workers.joining import JOIN_PATIENCE, absolute_location

ROUNDS = 3  # a block that is bad on disk after being written three times means a bad disk

__all__ = ["DumpConfig", "DumpResult", "dump_teacher", "stored_quality"]


@dataclass(frozen=True, kw_only=True)
class DumpResult:
    """What `dump_teacher` did.

    Attributes:
        store: path or URL of the sealed store.
        reused: True when a covering store was found and no teacher was run.
        rows_written: rows forwarded in this call.
        seconds: wall time of the teacher's making, the forward passes, writing and sealing.
        stages: where these went: "prepare" (build the teacher, probe it, open the store), "forward" (ask about every
            row, encode and write beside it) and "seal" (read everything back and seal); empty when nothing was run.
        teacher_seconds: inside the teacher's forward passes over the stored rows alone: what a live teacher would cost.
            None where they overlap with other work: on an accelerator and with several workers.
        quality: the teacher's top-1 and NLL (nats) on the stored rows.
    """

    store: str
    store_key: str
    reused: bool
    rows_written: int
    seconds: float
    quality: Mapping[str, Any] = field(default_factory=dict)
    root_digest: str = ""
    stages: Mapping[str, float] = field(default_factory=dict)
    teacher_seconds: float | None = None

    @classmethod
    def of(cls, place: str, manifest: StoreManifest, *, rows: int = 0, seconds: float = 0.0) -> DumpResult:
        """The result at a sealed store; without rows a teacher was not run: the store was there."""
        return cls(
            store=place,
            store_key=manifest.store_key,
            reused=rows == 0 and seconds == 0.0,
            rows_written=rows,
            seconds=seconds,
            quality=dict(manifest.quality),
            root_digest=manifest.root_digest,
        )


def dump_teacher(config: DumpConfig) -> DumpResult:
    """Dump a teacher's opinion of a data set into a store, or find the store that already holds it.

    With `workers`, `dask` or under torchrun the blocks are shared; on like machines the store is the same, bit for bit.

    Raises:
        ConfigError, NotFoundError, IncompatibleError: the request cannot be met; nothing was written.
        WeakTeacherError: the teacher is near chance on sampled rows; nothing was written.
        NumericError: NaN or infinite logits; the message names the rows and the store stays unfinished.
        LockedError: another process writes this store.
        RemoteError: the Dask scheduler is not there or was lost; the same command continues.
    """
    rank = Rank.of_torchrun()
    if rank is not None:
        rank.refuse(workers=config.workers, dask=config.dask)
    quiet = is_quiet()
    set_quiet(quiet or (rank is not None and rank.number > 0))
    try:
        started = time.perf_counter()
        plan = plan_dump(config)
        if plan.found is not None:
            note(f"store {plan.location} already covers this request; no teacher was built")
            return DumpResult.of(plan.location, plan.found.manifest)
        _refuse_far_workers(config, plan, rank)
        if rank is not None and rank.number > 0:
            rows = help_first_rank(config, plan, rank.run, rank.device(config.device))
            sealed = read_manifest(plan.location)
            return DumpResult.of(plan.location, sealed, rows=rows, seconds=time.perf_counter() - started)
        check_continued_views(plan)
        return _dump(config, plan, rank)
    finally:
        set_quiet(quiet)


def _dump(config: DumpConfig, plan: DumpPlan, rank: Rank | None) -> DumpResult:
    clock = _Clock()
    name = rank.run if rank is not None else uuid.uuid4().hex
    device = rank.device(config.device) if rank is not None else config.device
    teacher = plan.teacher.load(plan.source, choose_device(device))
    warn_if_amp_is_slow(config.amp, teacher.device)
    manifest = new_manifest(config, plan, teacher)
    run = TeacherRun.for_store(manifest, plan.source, teacher, plan.policy, decode_workers=config.decode_workers)
    quality = run.probe(batch_size=config.batch_size)
    note(f"teacher on {quality.rows} sampled rows: top-1 {quality.top1:.1%}, NLL {quality.nll:.3f} nats")
    quality.check(plan.data, allow_weak=config.allow_weak_teacher)
    with (
        written_at(plan.location, manifest) as folder,
        _team(config, folder, name) or nullcontext() as team,
        StoreWriter.open(folder, manifest, static=teacher.static) as writer,
    ):
        rows = sum(block.rows for block in writer.pending)
        alone = run if team is None and rank is None and teacher.device.type == "cpu" else None
        probed = run.teacher_seconds
        clock.ended("prepare")
        _announce(writer, plan, writer.pending)
        with Progress(rows, "rows", label="dump-teacher") as progress:
            if team is not None:
                del run, teacher  # the workers have their own
                gc.collect()
                fill = partial(share_with_team, writer, name, team, progress)
            elif rank is not None:
                fill = partial(_fill_with_ranks, writer, rank, folder, run, progress)
            else:
                fill = partial(_fill_alone, writer, run, progress)
            sealed = _fill_and_seal(config, plan, writer, fill, clock)
    clock.ended("seal")  # with what a URL still has to receive
    done = DumpResult.of(plan.location, sealed, rows=rows, seconds=sum(clock.stages.values()))
    return replace(done, stages=clock.stages, teacher_seconds=alone.teacher_seconds - probed if alone else None)


class _Clock:
    """Seconds of each stage; a stage that is repeated adds up."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._last = time.perf_counter()

    def ended(self, stage: str) -> None:
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._last
        self._last = now


def _fill_and_seal(
    config: DumpConfig, plan: DumpPlan, writer: StoreWriter, fill: Callable[[], None], clock: _Clock
) -> StoreManifest:
    """Fill, look at the whole and seal; blocks whose bytes are not as committed are asked for again."""
    for attempt in range(ROUNDS):
        fill()
        clock.ended("forward")
        try:
            final = stored_quality(writer)
            final.check(plan.data, allow_weak=config.allow_weak_teacher)
            return writer.seal(quality=to_json(final))
        except CorruptStoreError as error:
            writer.take_back_bad()
            if not writer.pending or attempt == ROUNDS - 1:
                raise
            note(f"{error.message}; asking again for {len(writer.pending)} blocks")
    raise AssertionError("the last round returns or raises")


def _fill_alone(writer: StoreWriter, run: TeacherRun, progress: Progress) -> None:
    run.fill(writer, batch_size=_batch_size(writer), on_block=lambda block: progress.update(block.rows))


def _fill_with_ranks(writer: StoreWriter, rank: Rank, location: str, run: TeacherRun, progress: Progress) -> None:
    """The first rank's part: it works like the others and coordinates between batches."""
    writer.share(rank.run)
    coordinator = Coordinator(writer, progress)
    while writer.pending:
        joined = JoinedWriter.join(location, run=rank.run)
        assert joined is not None  # this process holds the lease
        with joined:
            run.fill(joined, batch_size=_batch_size(writer), between=coordinator.step)
        coordinator.step(now=True)


def _refuse_far_workers(config: DumpConfig, plan: DumpPlan, rank: Rank | None) -> None:
    """Blocks for a URL lie on this machine's disk first, where ranks and clusters of several machines cannot write."""
    if (rank is not None or config.dask) and Location.at(plan.location).folder is None:
        raise ConfigError(
            f"{plan.location}: ranks of torchrun and Dask workers write to a folder they share, found a URL",
            hint=f"--out DIR on a disk they share, then kdcache push DIR {plan.location}; or --workers N",
        )


def _team(config: DumpConfig, folder: str, name: str) -> ProcessTeam | DaskTeam | None:
    """The workers the request asks for; processes here start at once, because importing torch takes seconds."""
    order = WorkOrder(config=config, location=absolute_location(folder), run=name, device=config.device)
    if config.dask:
        order = replace(order, config=for_elsewhere(config), patience=JOIN_PATIENCE)
        return DaskTeam(config.dask, report_of, order.to_text())
    if config.workers == 1:
        return None
    devices = spread_over_devices(config.device, config.workers)
    threads = max(1, min(torch.get_num_threads(), usable_cores() // config.workers))
    orders = [replace(order, device=device, threads=threads).to_text() for device in devices]
    team = ProcessTeam("kdcache.dump_worker:main", orders, environment={"OMP_NUM_THREADS": str(threads)})
    team.refill()
    return team


def _batch_size(writer: StoreWriter) -> int:
    """Rows per forward pass of this store, whatever a continuing command says: the same bits come out."""
    return int(writer.manifest.creator["batch_size"])


def _announce(writer: StoreWriter, plan: DumpPlan, pending: tuple[BlockId, ...]) -> None:
    manifest = writer.manifest
    blocks = manifest.num_views * manifest.blocks_per_view
    rows = sum(block.stop - block.start for block in pending)
    if len(pending) < blocks:
        note(f"continuing {plan.location}: {blocks - len(pending)} of {blocks} blocks are there, {rows:,} rows to go")
    else:
        note(
            f"dumping {plan.data.name} ({plan.data.split}): {plan.data.num_rows:,} rows x "
            f"{counted(manifest.num_views, 'view')}, "
            f"top {manifest.codec.topk} of {plan.data.num_classes} classes -> {plan.location}"
        )
    for column in feature_columns(manifest):
        note(str(column))


def stored_quality(writer: StoreWriter) -> TeacherQuality:
    """The teacher's quality over all committed rows of view 0, read back from the store block by block.

    Of mixed rows the label of the larger share counts, and both labels' log-probabilities weighted by lambda.
    """
    manifest = writer.manifest
    mixed = mixes(manifest.views) and "partner_label_log_prob" in manifest.codec.fields
    labels = _stored_labels(writer) if mixed else None  # a partner may be any row
    right, sums = 0, []
    for block in blocks_of_view(manifest, 0):
        columns = writer.read_block(block)
        label, log_prob = columns["label"], columns["label_log_prob"].astype(np.float64)
        if labels is not None:
            mix = recorded_mixing(manifest.views, columns["view_params"], num_rows=len(labels))
            label = np.where(mix.weight < 0.5, labels[mix.partner], label)
            second = columns["partner_label_log_prob"].astype(np.float64)
            log_prob = mix.weight * log_prob + (1 - mix.weight) * second
        right += int((columns["topk_index"][:, 0] == label).sum())
        sums.append(float(log_prob.sum()))
    rows = manifest.dataset.num_rows
    return TeacherQuality(rows=rows, top1=right / rows, nll=-math.fsum(sums) / rows)


def _stored_labels(writer: StoreWriter) -> NDArray[Any]:
    """(N,) labels of every row."""
    return np.concatenate([writer.read_block(block)["label"] for block in blocks_of_view(writer.manifest, 0)])
