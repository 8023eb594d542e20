"""What a store says about itself: frozen, validated, canonical JSON; no bytes, no torch.

`store_key` digests what changes a target (teacher, data, views); it leaves out what does not (V, k, precision, paths,
host, library versions, canaries, training provenance). A store covers a request when the keys match and it has at
least the k, views, fields and precision asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kdcache.canonical import digest_of, from_json, to_json
from kdcache.errors import ConfigError, CorruptStoreError, IncompatibleError

FORMAT_VERSION = 1
MAX_CLASSES = 2**32 - 2  # uint32 indices; its maximum marks a hole
CLASS_MEAN_TEMPERATURE = "class_mean_temperature"  # in a manifest's quality: the T of the array class_mean
Precision = Literal["exact", "default", "compact"]
PRECISIONS: tuple[Precision, ...] = ("exact", "default", "compact")  # the finest first


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """The examples a teacher was asked about, in row order.

    `content_digest` is the sha256 over every raw example; `identity` is "weak" when only labels and length could be
    checked (a user's own, already transformed data set).
    """

    name: str
    split: str
    num_rows: int
    num_classes: int
    content_digest: str
    label_digest: str
    identity: Literal["full", "weak"] = "full"
    card: str = ""
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.num_rows < 1:
            raise ConfigError(f"data set {self.name!r} split {self.split!r} has no rows; at least 1 is needed")
        if not 2 <= self.num_classes <= MAX_CLASSES:
            raise ConfigError(f"data set {self.name!r}: expected 2 to {MAX_CLASSES} classes, found {self.num_classes}")


@dataclass(frozen=True, kw_only=True)
class PreprocessingSpec:
    """The deterministic part of a model's input: resize (shorter side, pixels), centre crop, scale, normalise.

    Images are uint8; values become x/255, then (x - mean) / std per channel. `code` names a callable of the user's
    file instead, whose identity is the file's digest.
    """

    resize: int | None = None
    crop: int | None = None
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    code: str = ""

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ConfigError(f"preprocessing: {len(self.mean)} means but {len(self.std)} standard deviations")
        if any(value <= 0 for value in self.std):
            raise ConfigError(f"preprocessing: standard deviations must be positive, found {self.std}")


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """Who gave the opinion: architecture, exact weights, preprocessing and numeric mode."""

    source: str
    weights: str
    weights_sha256: str
    state_digest: str
    code_digest: str
    preprocessing: PreprocessingSpec
    numeric_mode: Literal["float32", "bfloat16"] = "float32"
    head: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """The part that changes a target. `source` matters: the same weights may fit two wirings."""
        keep = ("source", "state_digest", "code_digest", "preprocessing", "numeric_mode")
        return {name: to_json(getattr(self, name)) for name in keep}


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """Which replayable augmentation made the views. `ops` is the policy's canonical form; "none" has no ops."""

    policy: str = "none"
    ops: tuple[Mapping[str, Any], ...] = ()
    seed: int = 0
    libraries: Mapping[str, Any] = field(default_factory=dict)
    canaries: tuple[Mapping[str, Any], ...] = ()

    def identity(self) -> dict[str, Any]:
        """The part that changes pixels; a seed without random ops changes nothing."""
        return {"ops": to_json(self.ops), "seed": self.seed if self.ops else 0}


@dataclass(frozen=True, kw_only=True)
class CodecSpec:
    """How much of each opinion is kept: k classes, how finely, how many numbers about the tail, which extra fields.

    `fields` names the optional arrays the store holds besides the required ones, for example "class_weight",
    "view_params", "sample_index".
    """

    topk: int
    precision: Precision = "default"
    tail_numbers: int = 4
    fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.topk < 1:
            raise ConfigError(f"top-k: expected at least 1, found {self.topk}")
        if self.tail_numbers not in (3, 4):
            raise ConfigError(f"tail numbers: expected 3 or 4, found {self.tail_numbers}")


@dataclass(frozen=True, kw_only=True)
class StoreManifest:
    """Everything a reader needs before it touches an array; lives in the root group's attributes under "kdcache"."""

    format_version: int
    dataset: DatasetSpec
    teacher: TeacherSpec
    views: ViewSpec
    codec: CodecSpec
    num_views: int
    block_rows: int
    static_shapes: Mapping[str, Any] = field(default_factory=dict)
    store_id: str = ""
    creator: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple[Mapping[str, Any], ...] = ()
    complete: bool = False
    root_digest: str = ""

    def __post_init__(self) -> None:
        if self.num_views < 1:
            raise ConfigError(f"views: expected at least 1, found {self.num_views}")
        if self.codec.topk > self.dataset.num_classes:
            raise ConfigError(f"top-k {self.codec.topk} is larger than the {self.dataset.num_classes} classes")
        if self.block_rows < 1 or self.block_rows & (self.block_rows - 1):
            raise ConfigError(f"block rows: expected a power of two, found {self.block_rows}")

    @property
    def samples(self) -> int:
        """Classes drawn per row and view (`sample_index`, for rskd); 0 where none are kept."""
        shape = self.static_shapes.get("sample_index", ())
        return int(shape[0]) if "sample_index" in self.codec.fields and len(shape) == 1 else 0

    @property
    def store_key(self) -> str:
        """Hex sha256 of what changes a target: teacher, data and views."""
        return store_key(self.dataset, self.teacher, self.views)

    @property
    def blocks_per_view(self) -> int:
        """Number of row blocks of one view."""
        return -(-self.dataset.num_rows // self.block_rows)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON of the manifest, the store key included for people and other readers."""
        return {**to_json(self), "store_key": self.store_key}

    @classmethod
    def from_json(cls, value: Any, *, where: str) -> StoreManifest:
        """Read and check a manifest.

        Raises:
            IncompatibleError: a newer format version than this program reads.
            CorruptStoreError: anything else that is not a format-1 manifest.
        """
        if not isinstance(value, dict):
            raise CorruptStoreError(f"{where}: the manifest is {type(value).__name__}, expected an object")
        version = value.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise IncompatibleError(
                f"{where}: store format {version}, this kdcache reads up to {FORMAT_VERSION}",
                hint="pip install --upgrade kdcache",
            )
        if version != FORMAT_VERSION:
            raise CorruptStoreError(f"{where}: format_version is {version!r}, expected {FORMAT_VERSION}")
        plain = {name: item for name, item in value.items() if name != "store_key"}
        try:
            manifest = from_json(cls, plain, where=where)
        except ConfigError as error:
            raise CorruptStoreError(f"{where}: {error.message}") from error
        if value.get("store_key") != manifest.store_key:
            raise CorruptStoreError(f"{where}: store_key does not match the manifest: it was edited or mixed up")
        return manifest


def store_key(dataset: DatasetSpec, teacher: TeacherSpec, views: ViewSpec) -> str:
    """Hex sha256 of (teacher, data, views): equal keys mean equal targets on like machines."""
    data = {name: getattr(dataset, name) for name in ("content_digest", "label_digest", "num_rows", "num_classes")}
    data["split"] = dataset.split
    return digest_of({"teacher": teacher.identity(), "dataset": data, "views": views.identity()})


def covers(
    manifest: StoreManifest,
    key: str,
    *,
    topk: int,
    num_views: int,
    fields: tuple[str, ...] = (),
    samples: int = 0,
    precision: Precision = "compact",
) -> bool:
    """Whether a sealed store can serve a request for `topk` classes and `num_views` views under a store key.

    Args:
        manifest: the store's.
        key: the request's store key.
        topk, num_views: at least so many.
        fields: optional arrays that must be there.
        samples: at least so many classes drawn per row.
        precision: numbers at least as fine.
    """
    return (
        manifest.complete
        and manifest.store_key == key
        and manifest.codec.topk >= topk
        and manifest.num_views >= num_views
        and set(fields) <= set(manifest.codec.fields)
        and manifest.samples >= samples
        and finer_or_equal(manifest.codec.precision, precision)
    )


def finer_or_equal(precision: str, asked: str) -> bool:
    """Whether numbers of one precision can stand for those of another."""
    return PRECISIONS.index(precision) <= PRECISIONS.index(asked)


def with_changes(manifest: StoreManifest, **changes: Any) -> StoreManifest:
    """A copy of the manifest with some fields replaced (`dataclasses.replace`, typed for this class)."""
    return dataclasses.replace(manifest, **changes)
