"""What a dump is asked for, and everything about it that is known before the teacher is asked: `dump`'s first half.

A plan identifies data, teacher and views and finds a store that covers the request; it writes nothing.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from kdcache.datasets.cards import load_card, open_dataset
from kdcache.datasets.identity import dataset_spec
from kdcache.datasets.sequences import is_sequence
from kdcache.datasets.source import DataSource
from kdcache.errors import ConfigError, IncompatibleError, KdcacheError
from kdcache.loader.inputs import example_tensor, views_device
from kdcache.loader.tokens import DEFAULT_CONTEXT
from kdcache.models.features import PENULTIMATE
from kdcache.progress import note
from kdcache.specs import (
    FORMAT_VERSION,
    PRECISIONS,
    CodecSpec,
    DatasetSpec,
    Precision,
    PreprocessingSpec,
    StoreManifest,
    ViewSpec,
    store_key,
)
from kdcache.store.blocks import block_rows_for
from kdcache.store.find import FoundStore, covering_store, default_store_path
from kdcache.store.layout import FEATURE_TYPES, MAX_CHUNK_BYTES, feature_field, is_feature
from kdcache.store.location import Location
from kdcache.store.reader import open_reader
from kdcache.store.transfer import is_remote
from kdcache.store.verify import verify_store
from kdcache.targets.sampled import MOST_DRAWS
from kdcache.teachers import LoadedTeacher, TeacherChoice, TeacherRequest, feature_shapes_of
from kdcache.urls import clean_url
from kdcache.user_code import is_user_factory
from kdcache.version import __version__
from kdcache.views.canary import check_sampling, make_canaries, view_libraries
from kdcache.views.policy import ViewPolicy

DEFAULT_TOPK = 10  # enough for every method at K = 100 to 1,000 (docs/methods.md#tail), and one line of a table


@dataclass(frozen=True, kw_only=True)
class DumpConfig:
    """One request to `dump_teacher`. None or "" means the data card's own default.

    Attributes:
        dataset: card name, card.toml path or file.py:factory.
        split: which split of it; the rows students will train on.
        data_root: folder that holds the data set's files.
        teacher: model name, torchvision:NAME, timm:NAME, hf:FOLDER or file.py:factory.
        weights: safetensors or torch file, or the name of a torchvision weight enum.
        init_seed: use randomly initialised weights from this seed instead of a weights file.
        head: name of the last linear layer, when it is not found by itself.
        topk: classes kept per row, or "all"; None is 10, or all where there are fewer.
        views: number V of augmented views.
        augment: preset or TOML file of the view policy; view_seed is its seed.
        precision: how finely log-probabilities are kept.
        samples: classes drawn per row and view besides the top k, for the method rskd; 0 keeps none.
        features: what passes inside the teacher, kept too: names as in `models.features`, with commas between.
        feature_dtype: how features are kept, "float16" or "float32" (twice the bytes; equal to a live teacher's).
        batch_size: rows per forward pass; blocks always start a new batch.
        context: of token rows: each is read after at least this many tokens of its sequence; None: the card's, or 128.
        amp: "none" (float32) or "bf16" autocast; recorded in the manifest because it changes targets.
        workers: processes that run the teacher and share the blocks, on one device each where there are several.
        decode_workers: processes that decode files for each of them; 0 decodes in the process that runs the teacher.
        dask: address of a Dask scheduler whose workers share the blocks instead; "" for none.
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
    topk: int | Literal["all"] | None = None
    views: int = 1
    augment: str = "none"
    view_seed: int = 0
    precision: Precision = "default"
    samples: int = 0
    features: str = ""
    feature_dtype: Literal["float16", "float32"] = "float16"
    batch_size: int = 256
    context: int | None = None
    device: str = "auto"
    amp: Literal["none", "bf16"] = "none"
    workers: int = 1
    decode_workers: int = 0
    dask: str = ""
    out: str = ""
    allow_weak_teacher: bool = False

    def __post_init__(self) -> None:
        for name, least in (("views", 1), ("batch_size", 1), ("workers", 1), ("decode_workers", 0), ("samples", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if self.context is not None and self.context < 1:
            raise ConfigError(f"context: expected at least 1 token, found {self.context}")
        if isinstance(self.topk, int) and self.topk < 1:
            raise ConfigError(f"topk: expected at least 1 or 'all', found {self.topk}")
        if self.samples > MOST_DRAWS:
            raise ConfigError(f"samples: expected at most {MOST_DRAWS} draws per row, found {self.samples}")
        if self.feature_dtype not in FEATURE_TYPES.values():
            raise ConfigError(f"feature_dtype: expected float16 or float32, found {self.feature_dtype!r}")
        for field in self.feature_fields:
            if not is_feature(field) or self.feature_fields.count(field) > 1:
                raise ConfigError(
                    f"features {self.features!r}: expected names of layers, each once, with commas between; a name has "
                    "letters, digits, dots and underscores, 64 at most"
                )
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision: expected one of {', '.join(PRECISIONS)}, found {self.precision!r}")
        if self.dask and self.workers > 1:
            raise ConfigError(
                f"--workers {self.workers} and --dask {self.dask} exclude each other",
                hint="the cluster decides how many workers there are: dask worker SCHEDULER",
            )

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The features by the names they were asked for, in that order."""
        return tuple(name.strip() for name in self.features.split(",")) if self.features.strip() else ()

    @property
    def feature_fields(self) -> tuple[str, ...]:
        """The store's arrays of the features, in the same order."""
        return tuple(feature_field(name, self.feature_dtype) for name in self.feature_names)


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
    usual = min(DEFAULT_TOPK, data.num_classes)
    topk = data.num_classes if config.topk == "all" else usual if config.topk is None else config.topk
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
    if is_sequence(source) and config.augment != "none":
        raise ConfigError(
            f"augment {config.augment!r}: data set {data.name!r} has token rows, which have one view",
            hint="leave out --augment and --views",
        )
    context = _context(config)
    if is_sequence(source) and config.batch_size < context:
        note(
            f"batch size {config.batch_size} is below the context of {context} tokens, so most tokens are read more "
            f"than twice; --batch-size {2 * context} or more is faster"
        )
    policy = load_policy(config.augment, seed=config.view_seed)
    views = policy.spec() if policy is not None else ViewSpec()
    teacher = TeacherRequest.resolve(teacher_choice(config), source)
    key = store_key(data, teacher.spec, views)
    fields = config.feature_fields
    found = _covering(config, key, topk)
    location = clean_url(config.out) or default_store_path(
        data, teacher.spec, topk=topk, key=key, precision=config.precision, samples=config.samples, features=fields
    )
    if found is not None and _is_sound(found):
        location = found.location
    elif found is not None:
        note(f"store {found.location} covers this request but is damaged: its bad blocks are dumped again")
        location, found = found.location, None
    if found is None:
        Location.at(location).require_writable()  # before the teacher is built
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


def _covering(config: DumpConfig, key: str, topk: int) -> FoundStore | None:
    """The store that is there and serves the request."""
    found = covering_store(
        key,
        topk=topk,
        num_views=config.views,
        out=config.out,
        samples=config.samples,
        fields=config.feature_fields,
        precision=config.precision,
    )
    _check_head(config, found)
    return found


def _is_sound(found: FoundStore) -> bool:
    """Whether a store can be used as it is. A remote one is not read through for this: its readers check each block."""
    if is_remote(found.location):
        open_reader(found.location)  # manifest against ledger; damage there is an error, because nobody may repair it
        return True
    return not verify_store(found.location).problems


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
        context=_context(config),
    )


def _context(config: DumpConfig) -> int:
    """Tokens read before a token row: asked for, else the card's, else 128."""
    card = None if is_user_factory(config.dataset) else load_card(config.dataset)
    return config.context or (card.defaults.get("context", DEFAULT_CONTEXT) if card else DEFAULT_CONTEXT)


def load_policy(name: str, *, seed: int) -> ViewPolicy | None:
    """The view policy of `--augment NAME|FILE.toml|FILE.py:factory`; None when it changes nothing.

    Raises:
        ConfigError: an unknown policy.
    """
    policy = ViewPolicy.named(name, seed=seed)
    return policy if policy.ops else None


def recorded_views(plan: DumpPlan, *, num_views: int, device: torch.device | None = None) -> ViewSpec:
    """The policy's identity with canaries: a few replayed views whose pixels every later reader can compare.

    Args:
        device: where the dump makes its views as batches; None is image by image.
    """
    policy = plan.policy
    if policy is None:
        return plan.views
    canaries = make_canaries(
        policy, lambda row: example_tensor(plan.source, row), plan.data.num_rows, num_views=num_views, device=device
    )
    return policy.spec(libraries=view_libraries(device), canaries=canaries)


def check_continued_views(plan: DumpPlan) -> None:
    """Before rows or views are added to what is at the plan's place: outcomes drawn now must be those recorded there.

    Raises:
        IncompatibleError: another kdcache version drew the views that are there; old and new would not belong together.
    """
    if plan.policy is None:
        return
    try:
        there = open_reader(plan.location, allow_unfinished=True).manifest
    except KdcacheError:  # nothing is there, or nothing that can be read: the writer decides what that means
        return
    if there.store_key == plan.key:
        check_sampling(plan.policy, there.views, plan.data.num_rows)


def _check_head(config: DumpConfig, found: FoundStore | None) -> None:
    """The head's name is not in the store key, but it decides what "penultimate" means."""
    if found is None or not config.head or PENULTIMATE not in config.feature_names:
        return
    there = found.manifest.teacher.head
    if there != config.head:
        raise IncompatibleError(
            f"{found.location}: its penultimate features are what {there!r} reads; asked for those of {config.head!r}",
            hint="leave out --head, or choose another place with --out",
        )


def _check_feature_sizes(shapes: Mapping[str, list[int]], config: DumpConfig, block_rows: int) -> None:
    """Blocks follow from N alone, so a large feature map of a large data set may not fit into a chunk."""
    for field in config.feature_fields:
        size = math.prod(shapes[field]) * np.dtype(config.feature_dtype).itemsize * block_rows
        if size > MAX_CHUNK_BYTES:
            raise ConfigError(
                f"{field} of shape {tuple(shapes[field])}: {size:,} bytes in a block of {block_rows:,} rows; expected "
                f"at most {MAX_CHUNK_BYTES:,}",
                hint="keep a smaller feature (penultimate), or dump parts of the rows: --split train[0:100000]",
            )


def new_manifest(config: DumpConfig, plan: DumpPlan, teacher: LoadedTeacher) -> StoreManifest:
    """The manifest a new store for this plan starts with."""
    shapes = {name: list(array.shape) for name, array in teacher.static.items()}
    if plan.policy is not None:
        shapes["view_params"] = [plan.policy.width]
    if config.samples:
        shapes |= {"sample_index": [config.samples], "sample_count": [config.samples]}
    if config.features:
        inside = feature_shapes_of(teacher, plan.source, config.feature_names)
        fields_of = zip(config.feature_names, config.feature_fields, strict=True)
        shapes |= {field: list(inside[name.replace(".", "_")]) for name, field in fields_of}
        _check_feature_sizes(shapes, config, block_rows_for(plan.data.num_rows))
    masked = is_sequence(plan.source) and plan.source.mask is not None
    # methods built on the label need the teacher's opinion of the second one, which is often in the tail
    mixed = plan.policy is not None and plan.policy.mix_op is not None
    more = [name for name, kept in (("mask", masked), ("partner_label_log_prob", mixed)) if kept]
    fields = tuple(sorted({*shapes, *more}))
    return StoreManifest(
        format_version=FORMAT_VERSION,
        dataset=plan.data,
        teacher=teacher.spec,
        views=recorded_views(
            plan,
            num_views=config.views,
            device=views_device(plan.source, teacher.preprocessing, plan.policy, teacher.device),
        ),
        codec=CodecSpec(topk=plan.topk, precision=config.precision, fields=fields),
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
