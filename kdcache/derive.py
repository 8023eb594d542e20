"""`derive`: a smaller store from a sealed one, without its teacher: fewer classes, views or rows, or coarser numbers.

A store is never edited: the part is a store of its own, sealed and verified like any other, that names its parent's
digest. What a part cannot have (finer numbers, more classes, views that are not the first ones) is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from kdcache.canonical import to_json
from kdcache.class_mean import class_mean
from kdcache.datasets.identity import digest_of_rows, label_digest
from kdcache.datasets.row_range import parse_split
from kdcache.dump import stored_quality
from kdcache.errors import ConfigError, IncompatibleError
from kdcache.part_blocks import maker_of_part, part_maker
from kdcache.specs import CLASS_MEAN_TEMPERATURE, PRECISIONS, DatasetSpec, Precision, StoreManifest, ViewSpec
from kdcache.store.blocks import block_rows_for
from kdcache.store.files import local_path
from kdcache.store.layout import layout_of, static_arrays
from kdcache.store.reader import StoreReader, open_reader
from kdcache.store.writer import StoreWriter
from kdcache.targets.similarity import LARGEST_MATRIX
from kdcache.urls import is_url
from kdcache.version import __version__
from kdcache.views.mixing import mixes
from kdcache.workers.filling import Filling, fill
from kdcache.workers.tasks import Workforce, place_for

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class DeriveConfig:
    """What to keep of a store; None keeps all of it.

    Attributes:
        store: the sealed store to take from.
        out: path of the new store; continued when an earlier call was interrupted.
        topk: classes kept per row, at most the stored k.
        views: the first V' views.
        rows: [start, stop) of the rows.
        precision: how finely log-probabilities are kept; never finer than in the store.
        class_mean: T; also keep the mean p^T of each class's rows, (K, K), so that kd-sim need not pass over the store.
        workers: processes that share the blocks; the new store is the same.
        dask: scheduler of a Dask cluster whose workers share them; they must see both stores under the same paths.
    """

    store: str
    out: str
    topk: int | None = None
    views: int | None = None
    rows: tuple[int, int] | None = None
    precision: Precision | None = None
    class_mean: float | None = None
    workers: int = 1
    dask: str = ""

    @property
    def force(self) -> Workforce:
        """Who does the work; ConfigError for workers in two ways."""
        return Workforce(workers=self.workers, dask=self.dask)


@dataclass(frozen=True, kw_only=True)
class DeriveResult:
    """The new store: its place, its digests and the digest of the store it was taken from."""

    store: str
    store_key: str
    root_digest: str
    parent: str
    rows_written: int


def derive(config: DeriveConfig, *, reader: StoreReader | None = None) -> DeriveResult:
    """Write a part of a sealed store as a store of its own. Reads what it needs block by block, verified.

    Args:
        config: what to keep.
        reader: `config.store` when it is open already.

    Raises:
        ConfigError: a part the store does not have. UnfinishedStoreError, CorruptStoreError: the store is not sound.
        IncompatibleError: `out` holds something else.
        ResourceError, RemoteError: workers or the Dask scheduler were lost; the same call continues.
    """
    force = config.force
    if not is_url(config.store) and Path(config.out).resolve() == Path(config.store).resolve():
        raise ConfigError(
            f"{config.out}: a store cannot be derived onto itself; expected a new path", hint="choose another OUT"
        )
    reader = reader or open_reader(config.store)
    manifest = derived_manifest(reader, config)
    quality = {name: value for name, value in reader.manifest.quality.items() if name == CLASS_MEAN_TEMPERATURE}
    static = {}
    for array in static_arrays(layout_of(manifest)):
        if array.name == "class_mean" and config.class_mean is not None:
            static[array.name] = class_mean(
                reader, config.class_mean, rows=config.rows, force=force, place=config.store
            )
            quality = {CLASS_MEAN_TEMPERATURE: config.class_mean}
        else:
            static[array.name] = reader.static(array.name)
    if "class_mean" not in static:
        quality = {}
    start = config.rows[0] if config.rows else 0
    request = {"store": place_for(config.store, force), "start": start}
    out = str(local_path(config.out).absolute())
    filling = Filling(name="derive", location=out, factory=part_maker, request=request)
    with StoreWriter.open(config.out, manifest, static=static) as writer:
        written = sum(block.rows for block in writer.pending)
        fill(writer, filling, force, maker_of_part(reader, start, manifest))
        sealed = writer.seal(quality={**to_json(stored_quality(writer)), **quality})
    return DeriveResult(
        store=config.out,
        store_key=sealed.store_key,
        root_digest=sealed.root_digest,
        parent=reader.manifest.root_digest,
        rows_written=written,
    )


def derived_manifest(reader: StoreReader, config: DeriveConfig) -> StoreManifest:
    """The manifest of the part: what is asked for, checked against what the parent has.

    Raises:
        ConfigError, IncompatibleError: as `derive`.
    """
    parent = reader.manifest
    codec = parent.codec
    topk = codec.topk if config.topk is None else config.topk
    views = parent.num_views if config.views is None else config.views
    precision = config.precision or codec.precision
    for name, asked, most in (("topk", topk, codec.topk), ("views", views, parent.num_views)):
        if not 1 <= asked <= most:
            raise ConfigError(
                f"{config.store}: {name} {asked} asked for, expected 1 to {most}, what the store holds",
                hint=f"kdcache dump-teacher --{name} {asked} keeps more" if asked > most else "",
            )
    if precision not in PRECISIONS or PRECISIONS.index(precision) < PRECISIONS.index(codec.precision):
        raise ConfigError(
            f"{config.store}: precision {precision!r} asked for; the store keeps {codec.precision!r} and what was "
            f"rounded away cannot come back",
            hint=f"choose one of {', '.join(PRECISIONS[PRECISIONS.index(codec.precision) :])}",
        )
    data, spec = parent.dataset, parent.views
    if config.rows is not None:
        data = _part_of(reader, config.rows)
        spec = _canaries_within(spec, config.rows)
    fields, shapes = _fields_kept(parent, config)
    spec = replace(spec, canaries=tuple(canary for canary in spec.canaries if canary["view"] < views))
    changes = {"topk": topk, "views": views, "precision": precision}
    origin = {"relation": "derived", "root_digest": parent.root_digest, "store_key": parent.store_key}
    kept = {**changes, "rows": list(config.rows)} if config.rows else changes
    return replace(
        parent,
        dataset=data,
        views=spec,
        codec=replace(codec, topk=topk, precision=precision, fields=fields),
        static_shapes=shapes,
        num_views=views,
        block_rows=block_rows_for(data.num_rows),
        creator={"kdcache": __version__, "torch": torch.__version__, "command": "derive"},
        parents=({**origin, "kept": kept},),
        quality={},
        complete=False,
        root_digest="",
    )


def _fields_kept(parent: StoreManifest, config: DeriveConfig) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The codec's fields and their stated shapes: other rows have other class means, and new ones are wanted or not."""
    fields, shapes = set(parent.codec.fields), dict(parent.static_shapes)
    classes = parent.dataset.num_classes
    if config.class_mean is None and config.rows is not None:
        fields.discard("class_mean")
    if config.class_mean is not None:
        if not config.class_mean > 0 or not math.isfinite(config.class_mean):
            raise ConfigError(f"class_mean: expected a temperature above 0, found {config.class_mean}")
        if classes > LARGEST_MATRIX:
            raise ConfigError(
                f"class_mean keeps K x K numbers: expected at most {LARGEST_MATRIX} classes, found {classes}"
            )
        if mixes(parent.views):
            raise IncompatibleError("class_mean: the store's views mix two classes; expected rows of one class each")
        fields.add("class_mean")
        shapes["class_mean"] = [classes, classes]
    return tuple(sorted(fields)), {name: shape for name, shape in sorted(shapes.items()) if name in fields}


def _part_of(reader: StoreReader, rows: tuple[int, int]) -> DatasetSpec:
    parent, (start, stop) = reader.manifest, rows
    data = parent.dataset
    if not 0 <= start < stop <= data.num_rows:
        raise ConfigError(f"rows {start}:{stop} asked for, expected a part of 0:{data.num_rows}")
    if mixes(parent.views):
        raise IncompatibleError(
            "rows: the store's views mix examples, whose partners may lie outside the part; expected views of one row",
            hint="derive fewer views or classes instead",
        )
    if "sequence_offsets" in parent.codec.fields:
        raise IncompatibleError(
            "rows: the store's rows are tokens of sequences, which a part would cut; expected independent rows",
            hint="derive fewer classes instead",
        )
    name, before, _ = parse_split(data.split)
    return replace(
        data,
        split=f"{name}[{before + start}:{before + stop}]",
        num_rows=stop - start,
        content_digest=digest_of_rows(data.content_digest, start, stop),  # the raw examples are not here
        label_digest=label_digest(reader.labels[start:stop], data.num_classes),
    )


def _canaries_within(spec: ViewSpec, rows: tuple[int, int]) -> ViewSpec:
    start, stop = rows
    kept = [canary for canary in spec.canaries if start <= int(canary["row"]) < stop]
    return replace(spec, canaries=tuple({**canary, "row": int(canary["row"]) - start} for canary in kept))
