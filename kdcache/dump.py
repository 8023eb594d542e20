"""`dump-teacher`: run a teacher once over a data set and keep its opinion in a sealed store.

Order of work: identify data and teacher, look for a store that covers the request, and only then build the teacher,
forward the missing blocks, seal. The store's promises (commit, resume, locking) are `store.writer`'s; this module
decides what to ask the teacher and whether its answers are worth keeping.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from kdcache.canonical import to_json
from kdcache.datasets.cards import load_card, open_dataset
from kdcache.datasets.identity import dataset_spec
from kdcache.datasets.source import DataSource
from kdcache.devices import choose_device, warn_if_bf16_is_slow
from kdcache.errors import ConfigError
from kdcache.loader.inputs import example_tensor
from kdcache.progress import note
from kdcache.specs import (
    FORMAT_VERSION,
    PRECISIONS,
    CodecSpec,
    DatasetSpec,
    PreprocessingSpec,
    StoreManifest,
    ViewSpec,
    store_key,
)
from kdcache.store.blocks import BlockId, block_rows_for, blocks_of_view
from kdcache.store.find import FoundStore, covering_store, default_store_path
from kdcache.store.verify import verify_store
from kdcache.store.writer import StoreWriter
from kdcache.teacher_run import TeacherQuality, TeacherRun
from kdcache.teachers import LoadedTeacher, TeacherChoice, TeacherRequest
from kdcache.user_code import is_user_factory
from kdcache.version import __version__
from kdcache.views.canary import make_canaries, view_libraries
from kdcache.views.policy import ViewPolicy


@dataclass(frozen=True, kw_only=True)
class DumpConfig:
    """One request to `dump_teacher`. None or "" means the data card's own default.

    Attributes:
        dataset: card name, card.toml path or file.py:factory.
        split: which split of it; the rows students will train on.
        data_root: folder that holds the data set's files.
        teacher: model name, torchvision:NAME, timm:NAME or file.py:factory.
        weights: safetensors or torch file, or the name of a torchvision weight enum.
        init_seed: use randomly initialised weights from this seed instead of a weights file.
        head: name of the last linear layer, when it is not found by itself.
        topk: classes kept per row, or "all".
        views: number V of augmented views.
        augment: preset or TOML file of the view policy; view_seed is its seed.
        precision: how finely log-probabilities are kept.
        batch_size: rows per forward pass; blocks always start a new batch.
        amp: "none" (float32) or "bf16" autocast; recorded in the manifest because it changes targets.
        workers: processes that decode files; 0 reads in this process.
        out: path of the store; "" puts it under kdcache-store/ in the working folder.
        allow_weak_teacher: keep the opinion of a teacher that is near chance.
    """

    dataset: str = "digit-pairs"
    split: str = "train"
    data_root: Path | None = None
    teacher: str = ""
    weights: str = ""
    init_seed: int | None = None
    head: str = ""
    topk: int | Literal["all"] = 10
    views: int = 1
    augment: str = "none"
    view_seed: int = 0
    precision: Literal["exact", "default", "compact"] = "default"
    batch_size: int = 256
    device: str = "auto"
    amp: Literal["none", "bf16"] = "none"
    workers: int = 0
    out: str = ""
    allow_weak_teacher: bool = False

    def __post_init__(self) -> None:
        for name, least in (("views", 1), ("batch_size", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if self.topk != "all" and self.topk < 1:
            raise ConfigError(f"topk: expected at least 1 or 'all', found {self.topk}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision: expected one of {', '.join(PRECISIONS)}, found {self.precision!r}")


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


@dataclass(frozen=True, kw_only=True)
class DumpPlan:
    """A checked request: everything that is known before the teacher is built.

    Attributes:
        source: the rows.
        data: their identity.
        teacher: who will be asked.
        topk: k as a number.
        policy: replayable views, None for plain examples.
        views: the policy's identity.
        key: the store key.
        location: where the store is or will be.
        found: a sealed, sound store that covers the request.
    """

    source: DataSource
    data: DatasetSpec
    teacher: TeacherRequest
    topk: int
    policy: ViewPolicy | None
    views: ViewSpec
    key: str
    location: str
    found: FoundStore | None


def plan_dump(config: DumpConfig) -> DumpPlan:
    """Identify data, teacher and views, and look for a store that covers the request; builds no teacher if it can.

    Raises:
        ConfigError, NotFoundError, IncompatibleError: the request cannot be met; nothing was written.
    """
    source = open_dataset(config.dataset, split=config.split, root=config.data_root)
    data = dataset_spec(source, card=config.dataset)
    topk = data.num_classes if config.topk == "all" else int(config.topk)
    if topk > data.num_classes:
        raise ConfigError(
            f"topk {topk} is larger than the {data.num_classes} classes of {data.name!r}",
            hint="use --topk all to keep every class",
        )
    if config.augment == "none" and config.views > 1:
        raise ConfigError(
            f"views: {config.views} views of --augment none would all be the same; expected 1 or an augmentation",
            hint="add --augment cifar (or another preset or TOML file)",
        )
    policy = load_policy(config.augment, seed=config.view_seed)
    views = policy.spec() if policy is not None else ViewSpec()
    teacher = TeacherRequest.resolve(teacher_choice(config), source)
    key = store_key(data, teacher.spec, views)
    found = covering_store(key, topk=topk, num_views=config.views, out=config.out)
    location = config.out or default_store_path(data, teacher.spec, topk=topk, key=key)
    if found is not None and not verify_store(found.location).problems:
        location = found.location
    elif found is not None:
        note(f"store {found.location} covers this request but is damaged: its bad blocks are dumped again")
        location, found = found.location, None
    return DumpPlan(
        source=source,
        data=data,
        teacher=teacher,
        topk=topk,
        policy=policy,
        views=views,
        key=key,
        location=location,
        found=found,
    )


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
    started = time.perf_counter()
    teacher = plan.teacher.load(plan.source, choose_device(config.device))
    warn_if_bf16_is_slow(config.amp, teacher.device)
    manifest = new_manifest(config, plan, teacher)
    run = TeacherRun(plan.source, teacher, manifest.codec, plan.policy, workers=config.workers)
    quality = run.probe(batch_size=config.batch_size)
    note(f"teacher on {quality.rows} sampled rows: top-1 {quality.top1:.1%}, NLL {quality.nll:.3f} nats")
    quality.check(plan.data, allow_weak=config.allow_weak_teacher)
    with StoreWriter.open(plan.location, manifest, static=teacher.static) as writer:
        pending = writer.pending
        _announce(writer, plan, pending)
        run.fill(writer, pending, batch_size=int(writer.manifest.creator["batch_size"]))
        final = stored_quality(writer)
        final.check(plan.data, allow_weak=config.allow_weak_teacher)
        sealed = writer.seal(quality=to_json(final))
    rows = sum(block.stop - block.start for block in pending)
    return _result(plan.location, sealed, reused=False, rows=rows, seconds=time.perf_counter() - started)


def teacher_choice(config: DumpConfig) -> TeacherChoice:
    """The teacher a request means: its own words, completed by the data card's defaults.

    The card's default weights belong to its default teacher and are used for no other.
    """
    card = None if is_user_factory(config.dataset) else load_card(config.dataset)
    default = str(card.defaults.get("teacher", "")) if card else ""
    source = config.teacher or default
    if not source:
        raise ConfigError(
            f"data set {config.dataset!r} has no default teacher; expected --teacher SOURCE",
            hint="kdcache dump-teacher --dataset ... --teacher resnet32x4 --weights FILE",
        )
    weights = config.weights
    if card and not weights and config.init_seed is None and source == default:
        weights = str(card.defaults.get("weights", ""))
    return TeacherChoice(
        source=source,
        weights=weights,
        init_seed=config.init_seed,
        head=config.head,
        numeric_mode="bfloat16" if config.amp == "bf16" else "float32",
        data=card.preprocessing if card else PreprocessingSpec(),
    )


def load_policy(name: str, *, seed: int) -> ViewPolicy | None:
    """The view policy of `--augment NAME|FILE.toml|FILE.py:factory`; None when it changes nothing.

    Raises:
        ConfigError: an unknown policy, or one that mixes examples: the store does not yet record what mixing needs.
    """
    policy = ViewPolicy.named(name, seed=seed)
    if policy.mix_op is not None:
        raise ConfigError(
            f"augment {name!r} mixes two examples; stores of mixed views are not supported yet",
            hint="choose a policy without mixing, such as cifar, imagenet or imagenet-strong",
        )
    return policy if policy.ops else None


def recorded_views(plan: DumpPlan, *, num_views: int) -> ViewSpec:
    """The policy's identity with canaries: a few replayed views whose pixels every later reader can compare."""
    policy = plan.policy
    if policy is None:
        return plan.views
    canaries = make_canaries(
        policy, lambda row: example_tensor(plan.source, row), plan.data.num_rows, num_views=num_views
    )
    return policy.spec(libraries=view_libraries(), canaries=canaries)


def new_manifest(config: DumpConfig, plan: DumpPlan, teacher: LoadedTeacher) -> StoreManifest:
    """The manifest a new store for this plan starts with."""
    shapes = {name: list(array.shape) for name, array in teacher.static.items()}
    if plan.policy is not None:
        shapes["view_params"] = [plan.policy.width]
    return StoreManifest(
        format_version=FORMAT_VERSION,
        dataset=plan.data,
        teacher=teacher.spec,
        views=recorded_views(plan, num_views=config.views),
        codec=CodecSpec(topk=plan.topk, precision=config.precision, fields=tuple(sorted(shapes))),
        num_views=config.views,
        block_rows=block_rows_for(plan.data.num_rows),
        static_shapes=dict(sorted(shapes.items())),
        creator={
            "kdcache": __version__,
            "torch": torch.__version__,
            "batch_size": config.batch_size,
            "device": str(teacher.device.type),
            "machine": platform.machine(),
        },
    )


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
    """The teacher's quality over all committed rows of view 0, read back from the store."""
    right, nll, rows = 0, 0.0, 0
    for block in blocks_of_view(writer.manifest, 0):
        columns = writer.read_block(block)
        right += int((columns["topk_index"][:, 0] == columns["label"]).sum())
        nll -= float(columns["label_log_prob"].astype("float64").sum())
        rows += block.stop - block.start
    return TeacherQuality(rows=rows, top1=right / rows, nll=nll / rows)
