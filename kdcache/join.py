"""`join`: one store from parts of its rows, dumped or derived apart, without their teacher. `derive --rows` undone.

Parts are stores of `NAME[A:B]` of one split by one teacher, one behind the other. Nothing in them is computed again:
rows are copied, verified, and sealed as a store of their own that names the parts. What would make its numbers mean
something else (another teacher, other views, a gap) is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.canonical import to_json
from kdcache.datasets.cards import open_dataset
from kdcache.datasets.identity import content_digest, digest_of_rows, label_digest
from kdcache.datasets.row_range import parse_split, row_range
from kdcache.datasets.sequences import is_sequence
from kdcache.datasets.source import DataSource
from kdcache.dump import stored_quality
from kdcache.errors import ConfigError, IncompatibleError
from kdcache.joined_blocks import JoinedBlocks, join_maker
from kdcache.progress import note
from kdcache.specs import DatasetSpec, StoreManifest
from kdcache.store.blocks import block_rows_for
from kdcache.store.files import local_path
from kdcache.store.layout import layout_of, static_arrays
from kdcache.store.reader import StoreReader, open_reader
from kdcache.store.writer import StoreWriter
from kdcache.version import __version__
from kdcache.views.mixing import mixes
from kdcache.workers.filling import Filling, fill
from kdcache.workers.tasks import Workforce, place_for

OFFSETS = "sequence_offsets"
MOST_CANARIES = 64  # a canary takes 1.2 KB of the manifest, and each is replayed before a training run


@dataclass(frozen=True, kw_only=True)
class JoinConfig:
    """Which parts to join.

    Attributes:
        stores: two or more sealed stores of neighbouring row ranges of one split, in any order.
        out: path of the new store; continued when an earlier call was interrupted.
        dataset: card whose data is read to prove the parts and to give the new store the data set's own digest, and so
            the key of a dump of these rows; "" reads no data (token rows always need it, then it is the parts' card).
        data_root: where the data is.
        workers: processes that share the blocks; the new store is the same.
        dask: scheduler of a Dask cluster whose workers share them; they must see all stores under the same paths.
    """

    stores: tuple[str, ...]
    out: str
    dataset: str = ""
    data_root: Path | None = None
    workers: int = 1
    dask: str = ""

    @property
    def force(self) -> Workforce:
        """Who does the work; ConfigError for workers in two ways."""
        return Workforce(workers=self.workers, dask=self.dask)


@dataclass(frozen=True, kw_only=True)
class JoinResult:
    """The new store: its place and digests, the split its rows are, and the digests of its parts in their order."""

    store: str
    store_key: str
    root_digest: str
    split: str
    rows: int
    parents: tuple[str, ...]
    quality: Mapping[str, Any]


@dataclass(frozen=True)
class _Part:
    """A part's reader and its rows [start, stop) of the split `name`."""

    store: str
    reader: StoreReader
    name: str
    start: int
    stop: int


def join(config: JoinConfig) -> JoinResult:
    """Write the rows of several stores, one behind the other, as one store. Reads what it needs block by block.

    Raises:
        ConfigError: fewer than two stores, or data asked for that cannot name what the store holds.
        IncompatibleError: parts with a gap or an overlap between them, of other teachers, views or sizes, or not of
            the data set at hand; every difference is named and nothing is written.
        UnfinishedStoreError, CorruptStoreError: a part is not sound.
        ResourceError, RemoteError: workers or the Dask scheduler were lost; the same call continues.
    """
    force = config.force
    if len(set(config.stores)) < 2:
        raise ConfigError(f"join: expected two or more different stores, found {len(set(config.stores))}")
    parts = sorted((_part(store) for store in config.stores), key=lambda part: part.start)
    _check_together(parts)
    readers = [part.reader for part in parts]
    static = _static(parts)
    manifest = _manifest(parts, static, config)
    request = {"stores": [place_for(part.store, force) for part in parts]}
    location = str(local_path(config.out).absolute())
    filling = Filling(name="join", location=location, factory=join_maker, request=request)
    with StoreWriter.open(config.out, manifest, static=static) as writer:
        fill(writer, filling, force, JoinedBlocks(readers, manifest))
        sealed = writer.seal(quality=to_json(stored_quality(writer)))
    return JoinResult(
        store=config.out,
        store_key=sealed.store_key,
        root_digest=sealed.root_digest,
        split=sealed.dataset.split,
        rows=sealed.dataset.num_rows,
        parents=tuple(reader.manifest.root_digest for reader in readers),
        quality=dict(sealed.quality),
    )


def _part(store: str) -> _Part:
    reader = open_reader(store)
    data = reader.manifest.dataset
    name, start, stop = parse_split(data.split)
    if stop is None or stop - start != data.num_rows:
        raise IncompatibleError(
            f"{store}: holds split {data.split!r} ({data.num_rows:,} rows); expected rows NAME[A:B] of a split",
            hint="kdcache dump-teacher --split 'train[0:10000]' makes a part, kdcache derive --rows 0:10000 cuts one",
        )
    return _Part(store, reader, name, start, stop)


def _check_together(parts: Sequence[_Part]) -> None:
    lines = []
    for one, other in pairwise(parts):
        if other.start != one.stop:
            what = "a gap" if other.start > one.stop else "an overlap"
            between = f"rows {one.start}:{one.stop} of {one.store} and {other.start}:{other.stop} of {other.store}"
            lines.append(f"{what} between {between}")
    first = parts[0]
    for part in parts[1:]:
        lines += [f"{line} in {part.store}" for line in _differences(first, part)]
    if lines:
        raise IncompatibleError(
            f"{first.store} and the other parts cannot be joined:\n    " + "\n    ".join(lines),
            hint="parts follow one another, of one split, by one teacher, with the same views, k and fields",
        )
    if mixes(first.reader.manifest.views):
        raise IncompatibleError(
            f"{first.store}: its views mix examples, whose partners are rows of the part; expected views of one row",
            hint="dump mixed views of all rows in one store: dump-teacher --workers, torchrun or --dask share the work",
        )


def _differences(one: _Part, other: _Part) -> list[str]:
    a, b = one.reader.manifest, other.reader.manifest
    facts: dict[str, tuple[Any, Any]] = {
        "data set": (f"{a.dataset.name} ({one.name})", f"{b.dataset.name} ({other.name})"),
        "classes": (a.dataset.num_classes, b.dataset.num_classes),
        "class names": (a.dataset.class_names, b.dataset.class_names),
        "identity of the data": (a.dataset.identity, b.dataset.identity),
        "teacher": (_named(a), _named(b)),
        "views": (a.num_views, b.num_views),
        "view ops and seed": (a.views.identity(), b.views.identity()),
        "top-k": (a.codec.topk, b.codec.topk),
        "precision": (a.codec.precision, b.codec.precision),
        "numbers about the tail": (a.codec.tail_numbers, b.codec.tail_numbers),
        "fields": (_fields(a), _fields(b)),
        "sizes of fields": (_row_shapes(a), _row_shapes(b)),
    }
    return [f"{name}: {left}, but {right}" for name, (left, right) in facts.items() if left != right]


def _named(manifest: StoreManifest) -> str:
    teacher = manifest.teacher
    return f"{teacher.source} {to_json(teacher.identity())}"


def _fields(manifest: StoreManifest) -> tuple[str, ...]:
    """What a joined store keeps: the class means of a part are not those of all rows."""
    return tuple(name for name in manifest.codec.fields if name != "class_mean")


def _row_shapes(manifest: StoreManifest) -> dict[str, Any]:
    return {name: shape for name, shape in manifest.static_shapes.items() if name not in ("class_mean", OFFSETS)}


def _static(parts: Sequence[_Part]) -> dict[str, NDArray[Any]]:
    """The store-level arrays: the teacher's are the same in every part, sequences follow one another.

    Raises:
        IncompatibleError: the parts' teachers state other weights.
    """
    found: dict[str, NDArray[Any]] = {}
    for array in static_arrays(layout_of(parts[0].reader.manifest)):
        if array.name == OFFSETS:
            pieces = [part.reader.static(OFFSETS)[1:] + (part.start - parts[0].start) for part in parts]
            found[OFFSETS] = np.concatenate([np.zeros(1, dtype=np.int64), *pieces])
        elif array.name != "class_mean":
            found[array.name] = parts[0].reader.static(array.name)
            for part in parts[1:]:
                if not np.array_equal(part.reader.static(array.name), found[array.name]):
                    raise IncompatibleError(
                        f"{part.store}: {array.name} is not that of {parts[0].store}; expected parts of one teacher",
                        hint="dump all parts with the same weights, on like machines",
                    )
    return found


def _manifest(parts: Sequence[_Part], static: Mapping[str, NDArray[Any]], config: JoinConfig) -> StoreManifest:
    first = parts[0].reader.manifest
    data = _joined_data(parts, static, config)
    shapes = {**_row_shapes(first), **({OFFSETS: [len(static[OFFSETS])]} if OFFSETS in static else {})}
    return replace(
        first,
        dataset=data,
        views=replace(first.views, canaries=_canaries(parts)),
        codec=replace(first.codec, fields=_fields(first)),
        static_shapes={name: shapes[name] for name in sorted(shapes)},
        block_rows=block_rows_for(data.num_rows),
        creator={"kdcache": __version__, "torch": torch.__version__, "command": "join"},
        parents=tuple(
            {
                "relation": "joined",
                "root_digest": part.reader.manifest.root_digest,
                "store_key": part.reader.manifest.store_key,
                "rows": [part.start, part.stop],
            }
            for part in parts
        ),
        quality={},
        complete=False,
        root_digest="",
    )


def _canaries(parts: Sequence[_Part]) -> tuple[Mapping[str, Any], ...]:
    """The parts' canaries under the new row numbers; of very many, some that are spread over all parts."""
    shifted = [
        {**canary, "row": int(canary["row"]) + part.start - parts[0].start}
        for part in parts
        for canary in part.reader.manifest.views.canaries
    ]
    if len(shifted) <= MOST_CANARIES:
        return tuple(shifted)
    return tuple(shifted[number] for number in np.linspace(0, len(shifted) - 1, MOST_CANARIES).astype(int))


def _joined_data(parts: Sequence[_Part], static: Mapping[str, NDArray[Any]], config: JoinConfig) -> DatasetSpec:
    first = parts[0].reader.manifest.dataset
    start, stop = parts[0].start, parts[-1].stop
    split = f"{parts[0].name}[{start}:{stop}]"
    # Read block by block: `labels` of a reader would keep a whole view of every part.
    labels = np.concatenate(
        [columns["label"] for part in parts for _, columns in part.reader.blocks(0)], dtype=np.int64, casting="unsafe"
    )
    digest = _told_digest(parts)
    card = config.dataset or (first.card if OFFSETS in static else "")
    if OFFSETS in static and not card:
        raise ConfigError(
            f"{parts[0].store}: token rows are joined with their data at hand and the store names no data card",
            hint="name the data with --dataset",
        )
    if card:
        source, split = _whole(parts, card, config.data_root)
        _check_data(parts, source, static)
        digest = content_digest(source)
    return replace(
        first,
        split=split,
        num_rows=stop - start,
        content_digest=digest,
        label_digest=label_digest(labels, first.num_classes),
        card=card or first.card,
    )


def _told_digest(parts: Sequence[_Part]) -> str:
    """Of "these parts, one behind the other": proves as much as theirs, but is not that of a dump of all rows."""
    lines = [f"{part.start}:{part.stop} {part.reader.manifest.dataset.content_digest}\n" for part in parts]
    return hashlib.sha256(("kdcache joined rows\n" + "".join(lines)).encode()).hexdigest()


def _whole(parts: Sequence[_Part], card: str, root: Path | None) -> tuple[DataSource, str]:
    """The data of all parts, and what its rows are called."""
    manifest = parts[0].reader.manifest
    if manifest.views.ops or manifest.samples:
        # With the data's own digest the store would have the key of one dump of all rows, whose draws are others.
        what = "views" if manifest.views.ops else "sampled classes"
        raise ConfigError(
            f"{parts[0].store}: its {what} were drawn by the part's own row numbers, so a dump of all rows would hold "
            "other ones; the joined store cannot have the data set's own digest",
            hint="leave --dataset out: the joined store then has a key of its own"
            + ("; token rows with sampled classes cannot be joined" if OFFSETS in manifest.codec.fields else ""),
        )
    source = open_dataset(card, split=parts[0].name, root=root)
    start, stop = parts[0].start, parts[-1].stop
    if (start, stop) == (0, len(source)):
        return source, parts[0].name
    return row_range(source, start, stop), f"{parts[0].name}[{start}:{stop}]"


def _check_data(parts: Sequence[_Part], source: DataSource, static: Mapping[str, NDArray[Any]]) -> None:
    """Refuse parts that are not these rows of the data at hand.

    Raises:
        IncompatibleError: naming the first part that is not.
    """
    note(f"reading {source.name} ({source.split}), {len(source):,} rows, to compare it with the parts")
    first = parts[0].start
    for part in parts:
        rows = row_range(source, part.start - first, part.stop - first)
        spec = part.reader.manifest.dataset
        # A derived part names its rows of its parent, because it had no raw examples to read.
        named = {content_digest(rows), digest_of_rows(content_digest(source), part.start - first, part.stop - first)}
        if spec.content_digest not in named or label_digest(rows.labels, rows.num_classes) != spec.label_digest:
            raise IncompatibleError(
                f"{part.store}: was not made from rows {part.start}:{part.stop} of {source.name} ({part.name}) as the "
                "data is here: raw examples or labels differ",
                hint="name the data the parts were made from with --dataset and --data-root, or leave --dataset out",
            )
    if OFFSETS in static and not (is_sequence(source) and np.array_equal(source.sequence_offsets, static[OFFSETS])):
        raise IncompatibleError(
            f"{parts[0].store}: the parts cut sequences of {source.name} ({source.split}), and a teacher asked about "
            "a cut one sees less before each token",
            hint="dump parts that begin and end with sequences",
        )
