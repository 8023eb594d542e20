"""`merge`: one store of an ensemble's mean opinion from the stores of its members, without any of the teachers.

Members must hold the same rows and the same views; what differs is said line by line. Exact where every class is
stored; below that the manifest says how far the mean can be from the true one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kdcache.canonical import digest_of, to_json
from kdcache.dump import stored_quality
from kdcache.errors import ConfigError, IncompatibleError
from kdcache.mean_blocks import COPIED, PARTNER, MeanBlocks, mean_maker
from kdcache.progress import note
from kdcache.specs import PRECISIONS, Precision, PreprocessingSpec, StoreManifest, TeacherSpec
from kdcache.store.features import feature_columns
from kdcache.store.files import local_path
from kdcache.store.reader import StoreReader, open_reader
from kdcache.store.writer import StoreWriter
from kdcache.version import __version__
from kdcache.workers.filling import Filling, fill
from kdcache.workers.tasks import Workforce, place_for


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Which stores to average.

    Attributes:
        stores: two or more sealed stores.
        out: path of the new store; continued when an earlier call was interrupted.
        topk: classes kept per row; None keeps the smallest k of the members.
        precision: None keeps the coarsest of the members'.
        workers: processes that share the blocks; the new store is the same.
        dask: scheduler of a Dask cluster whose workers share them; they must see all stores under the same paths.
    """

    stores: tuple[str, ...]
    out: str
    topk: int | None = None
    precision: Precision | None = None
    workers: int = 1
    dask: str = ""

    @property
    def force(self) -> Workforce:
        """Who does the work; ConfigError for workers in two ways."""
        return Workforce(workers=self.workers, dask=self.dask)


@dataclass(frozen=True, kw_only=True)
class MergeResult:
    """The new store.

    Attributes:
        exact: every member stores all K classes.
        dropped: feature arrays of the members; they are one teacher's own, so the mean has none.
        bound_mean, bound_max: over rows and views, total variation from the true mean, at most; 0 when exact.
    """

    store: str
    store_key: str
    root_digest: str
    parents: tuple[str, ...]
    exact: bool
    bound_mean: float
    bound_max: float
    quality: Mapping[str, Any]
    dropped: tuple[str, ...] = ()


def merge(config: MergeConfig) -> MergeResult:
    """Average the members' probabilities at T=1 and seal the result as a store of its own.

    Raises:
        ConfigError: fewer than two stores, or more classes than a member holds.
        IncompatibleError: the members are not about the same rows and views; every difference is named.
        UnfinishedStoreError, CorruptStoreError: a member is not sound.
        ResourceError, RemoteError: workers or the Dask scheduler were lost; the same call continues.
    """
    force = config.force
    if len(set(config.stores)) < 2:
        raise ConfigError(f"merge: expected two or more different stores, found {len(set(config.stores))}")
    readers = [open_reader(store) for store in config.stores]
    manifest = merged_manifest(readers, config)
    dropped = tuple(sorted({column.field for reader in readers for column in feature_columns(reader.manifest)}))
    if dropped:
        note(f"{config.out}: without {', '.join(dropped)}: features are one teacher's own, a mean of them is nobody's")
    static = {name: readers[0].static(name) for name in manifest.codec.fields if name == "sequence_offsets"}
    out = local_path(config.out).absolute()
    request = {"stores": [place_for(store, force) for store in config.stores], "out": str(out)}
    filling = Filling(name="merge", location=str(out), factory=mean_maker, request=request)
    with StoreWriter.open(config.out, manifest, static=static) as writer:
        maker = MeanBlocks(readers, manifest, out)
        fill(writer, filling, force, maker)
        if writer.manifest.complete:
            facts = {name: float(writer.manifest.quality[name]) for name in ("merge_bound_mean", "merge_bound_max")}
        else:
            facts = maker.measured()
        sealed = writer.seal(quality={**to_json(stored_quality(writer)), **facts})
    return MergeResult(
        store=config.out,
        store_key=sealed.store_key,
        root_digest=sealed.root_digest,
        parents=tuple(reader.manifest.root_digest for reader in readers),
        exact=_is_exact([reader.manifest for reader in readers]),
        bound_mean=facts["merge_bound_mean"],
        bound_max=facts["merge_bound_max"],
        quality=dict(sealed.quality),
        dropped=dropped,
    )


def merged_manifest(readers: Sequence[StoreReader], config: MergeConfig) -> StoreManifest:
    """The manifest of the mean, after checking that the members belong together.

    Raises:
        ConfigError, IncompatibleError: as `merge`.
    """
    manifests = [reader.manifest for reader in readers]
    first = manifests[0]
    for reader, other in zip(readers[1:], manifests[1:], strict=True):
        lines = differences(first, other)
        if lines:
            raise IncompatibleError(
                f"{reader.location} and {readers[0].location} cannot be merged:\n    " + "\n    ".join(lines),
                hint="dump the teachers over the same data, split, views and view seed"
                + ("; kdcache join puts rows of one teacher together" if _other_rows(first, other) else ""),
            )
    smallest = min(manifest.codec.topk for manifest in manifests)
    topk = config.topk or smallest
    if not 1 <= topk <= smallest:
        raise ConfigError(f"top-k: expected 1 to {smallest} (the smallest k of the stores), found {topk}")
    coarsest = max((manifest.codec.precision for manifest in manifests), key=PRECISIONS.index)
    fields = tuple(name for name in first.codec.fields if name in (*COPIED, PARTNER))
    return replace(
        first,
        teacher=_ensemble(manifests),
        views=replace(first.views, canaries=_canaries(manifests)),
        codec=replace(first.codec, topk=topk, precision=config.precision or coarsest, fields=fields),
        num_views=min(manifest.num_views for manifest in manifests),
        static_shapes={name: shape for name, shape in first.static_shapes.items() if name in fields},
        creator={"kdcache": __version__, "torch": torch.__version__, "command": "merge"},
        parents=tuple(
            {"relation": "merged", "root_digest": manifest.root_digest, "store_key": manifest.store_key}
            for manifest in manifests
        ),
        quality={},
        complete=False,
        root_digest="",
    )


def differences(one: StoreManifest, other: StoreManifest) -> list[str]:
    """Why two stores are not about the same rows and views, one line each; empty when they are."""
    a, b = one.dataset, other.dataset
    facts: dict[str, tuple[Any, Any]] = {
        "data set": (f"{a.name} ({a.split})", f"{b.name} ({b.split})"),
        "rows": (a.num_rows, b.num_rows),
        "classes": (a.num_classes, b.num_classes),
        "labels": (a.label_digest[:12], b.label_digest[:12]),
        "raw examples": (a.content_digest[:12], b.content_digest[:12]),
        "views": (one.views.policy, other.views.policy),
        "view ops and seed": (one.views.identity(), other.views.identity()),
        "numbers about the tail": (one.codec.tail_numbers, other.codec.tail_numbers),
    }
    return [f"{name}: {left} and {right}" for name, (left, right) in facts.items() if left != right]


def _other_rows(one: StoreManifest, other: StoreManifest) -> bool:
    """Whether two stores are of other rows by one teacher: a task for `join`."""
    return one.dataset.split != other.dataset.split and one.teacher.identity() == other.teacher.identity()


def _ensemble(manifests: Sequence[StoreManifest]) -> TeacherSpec:
    teachers = [manifest.teacher for manifest in manifests]
    identities: list[Any] = [teacher.identity() for teacher in teachers]
    exact = _is_exact(manifests)
    if not exact:  # what an approximate mean holds depends on what its members had kept
        identities = [[who, manifest.root_digest] for who, manifest in zip(identities, manifests, strict=True)]
    same = all(teacher.preprocessing == teachers[0].preprocessing for teacher in teachers)
    return TeacherSpec(
        source="ensemble:" + "+".join(sorted(teacher.source for teacher in teachers)),
        weights="",
        weights_sha256="",
        state_digest=digest_of(sorted(identities, key=digest_of)),
        code_digest="",
        preprocessing=teachers[0].preprocessing if same else PreprocessingSpec(),
        training={
            "ensemble": "mean probability at T=1, " + ("exact" if exact else "approximate"),
            "members": [{"source": teacher.source, "state_digest": teacher.state_digest} for teacher in teachers],
        },
    )


def _is_exact(manifests: Sequence[StoreManifest]) -> bool:
    return all(manifest.codec.topk == manifest.dataset.num_classes for manifest in manifests)


def _canaries(manifests: Sequence[StoreManifest]) -> tuple[Mapping[str, Any], ...]:
    views = min(manifest.num_views for manifest in manifests)
    return tuple(canary for canary in manifests[0].views.canaries if canary["view"] < views)
