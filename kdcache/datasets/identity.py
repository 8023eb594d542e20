"""Proves that row i is row i: digests of raw examples and labels, and the comparison with what a store remembers.

Content digests of file-backed data sets are cached by path, size and modification time, because reading ImageNet again
takes longer than finding a store that covers it. No torch, no store access.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from kdcache.cache_folder import cache_folder
from kdcache.datasets.sequences import TokenSource
from kdcache.datasets.source import ArraySource, DataSource
from kdcache.errors import ConfigError, IncompatibleError
from kdcache.seeding import rng_for
from kdcache.specs import DatasetSpec


def row_digests(source: DataSource, rows: Iterable[int] | NDArray[np.integer]) -> NDArray[np.uint16]:
    """Digests of raw examples: crc32c, its halves folded together by exclusive or.

    Args:
        source: the data set; with identity "weak" nothing raw is known and every digest is 0.
        rows: n row numbers.

    Returns:
        (n,) uint16.
    """
    chosen = [int(row) for row in rows]
    if source.identity == "weak":
        return np.zeros(len(chosen), dtype=np.uint16)
    return digests_of((source.raw(row) for row in chosen), count=len(chosen))


def digests_of(raw: Iterable[bytes], *, count: int) -> NDArray[np.uint16]:
    """(count,) uint16: the same digests from raw examples that were read already."""
    checksums = np.fromiter((google_crc32c.value(content) for content in raw), dtype=np.uint32, count=count)
    return ((checksums >> 16) ^ (checksums & 0xFFFF)).astype(np.uint16)


def read_with_digests(
    source: DataSource, rows: Iterable[int] | NDArray[np.integer]
) -> tuple[list[NDArray[np.generic]], NDArray[np.uint16]]:
    """Decoded examples and their digests; what can decode bytes that were read (files) is read once for both."""
    decode = getattr(source, "example_from_raw", None)
    if source.identity == "weak" or decode is None:
        return [source.example(int(row)) for row in rows], row_digests(source, rows)
    raw = [source.raw(int(row)) for row in rows]
    examples = [decode(int(row), content) for row, content in zip(rows, raw, strict=True)]
    return examples, digests_of(raw, count=len(raw))


def content_digest(source: DataSource, *, fresh: bool = False) -> str:
    """Hex sha256 over every raw example in row order; each is preceded by its length as 8 little-endian bytes.

    Arrays begin with their dtype and row shape, files with the word "files"; token rows are hashed as whole arrays, see
    `TokenSource.content`. A source of identity "weak" has no raw
    bytes: its digest covers labels and length only. The result is remembered on the source, and for file-backed
    sources under the user's cache folder (`cache_folder`); `fresh` reads everything again.
    """
    known = None if fresh else getattr(source, "_content_digest", None)
    if isinstance(known, str):
        return known
    fingerprint = getattr(source, "fingerprint", None)
    found = fingerprint() if callable(fingerprint) else ""
    cache = _cache_file(found) if found else None
    with _one_at_a_time(cache):  # the workers of one machine start together: one reads, the others wait for it
        digest = _read_cached(cache) if cache is not None and not fresh else None
        if digest is None:
            digest = _compute_content_digest(source)
            if cache is not None:
                _write_cached(cache, digest)
    source._content_digest = digest  # type: ignore[attr-defined]
    return digest


def digest_of_rows(whole: str, start: int, stop: int) -> str:
    """Hex sha256 of "rows [start, stop) of the data set with this content digest", for who cannot read the rows again.

    It proves as much as the digest of the rows themselves, but is another one: a look-up by it misses, and never lies.
    """
    return hashlib.sha256(f"kdcache rows {start}:{stop} of {whole}\n".encode()).hexdigest()


def label_digest(labels: NDArray[np.integer], num_classes: int) -> str:
    """Hex sha256 of the labels as int64, little endian, after the number of classes."""
    digest = hashlib.sha256(f"{num_classes}\n".encode())
    digest.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    return digest.hexdigest()


def dataset_spec(source: DataSource, *, card: str) -> DatasetSpec:
    """The identity of a data set, after checking that it is usable at all.

    Args:
        source: the data set.
        card: the name it was asked for by.

    Raises:
        ConfigError: it has no rows, or fewer than 2 classes.
        IncompatibleError: a label is out of range, or labels and examples differ in number.
    """
    check_labels(source)
    return DatasetSpec(
        name=source.name,
        split=source.split,
        num_rows=len(source),
        num_classes=source.num_classes,
        content_digest=content_digest(source),
        label_digest=label_digest(source.labels, source.num_classes),
        identity="weak" if source.identity == "weak" else "full",
        card=card,
        class_names=source.class_names,
    )


def check_labels(source: DataSource) -> None:
    """Refuse an empty data set, labels that do not match the rows, and labels outside 0..K-1.

    Raises:
        ConfigError, IncompatibleError: as `dataset_spec`.
    """
    subject = f"data set {source.name!r} split {source.split!r}"
    if len(source) == 0:
        raise ConfigError(
            f"{subject} has no rows; at least 1 is needed", hint="check the data root and the split's name"
        )
    _check_label_count(source)
    outside = np.flatnonzero((source.labels < 0) | (source.labels >= source.num_classes))
    if len(outside):
        row = int(outside[0])
        raise IncompatibleError(
            f"{subject}: label {int(source.labels[row])} of row {row} is outside 0..{source.num_classes - 1} "
            f"({len(outside)} such rows)",
            hint="correct the labels, or the number of classes in the data card",
        )


def check_identity(
    source: DataSource,
    spec: DatasetSpec,
    labels: NDArray[np.integer],
    digests: NDArray[np.uint16],
    *,
    sample: int = 512,
) -> None:
    """Refuse a data set that is not, row by row, the one a store was made from.

    All labels are compared, and the raw digests of a fixed sample of rows; `loader` compares the other rows as they
    pass. Two digests of different examples are equal with probability 2**-16.

    Args:
        source: the data set at hand.
        spec: what the store says about its data set.
        labels: (N,) the store's labels.
        digests: (N,) uint16, the store's row digests.
        sample: how many rows' raw bytes are read; N or more reads all.

    Raises:
        IncompatibleError: naming the first difference: rows, classes, a label, or a row.
    """
    if len(source) != spec.num_rows:
        _refuse(source, spec, f"the store has {spec.num_rows} rows, the data set {len(source)}")
    _check_label_count(source)
    if source.num_classes != spec.num_classes:
        _refuse(source, spec, f"the store has {spec.num_classes} classes, the data set {source.num_classes}")
    different = np.flatnonzero(source.labels != labels)
    if len(different):
        row = int(different[0])
        found = f"label of row {row} is {int(source.labels[row])}, the store says {int(labels[row])}"
        _refuse(source, spec, f"{found} ({len(different)} of {spec.num_rows} labels differ)")
    if source.identity == "weak" or spec.identity == "weak":
        return
    rows = sampled_rows(spec.num_rows, sample)
    wrong = np.flatnonzero(row_digests(source, rows) != digests[rows])
    if len(wrong):
        row = int(rows[wrong[0]])
        shown = f"row {row} is another example (its raw digest differs"
        _refuse(source, spec, f"{shown}, as for {len(wrong)} of {len(rows)} rows that were read)")


def sampled_rows(num_rows: int, sample: int) -> NDArray[np.int64]:
    """The rows `check_identity` reads: first, last and one of each of equal strata; ascending, no repeats."""
    if sample >= num_rows:
        return np.arange(num_rows, dtype=np.int64)
    edges = np.linspace(0, num_rows, sample + 1).astype(np.int64)
    offsets = rng_for("identity", num_rows, sample).random(sample)
    rows = edges[:-1] + (offsets * np.diff(edges)).astype(np.int64)
    return np.unique(np.concatenate(([0], rows, [num_rows - 1]))).astype(np.int64)


def _check_label_count(source: DataSource) -> None:
    if len(source.labels) != len(source):
        raise IncompatibleError(
            f"data set {source.name!r} split {source.split!r}: {len(source)} rows but {len(source.labels)} labels",
            hint="give every row one label",
        )


def _refuse(source: DataSource, spec: DatasetSpec, what: str) -> NoReturn:
    raise IncompatibleError(
        f"data set {source.name!r} split {source.split!r} is not the one the store was made from "
        f"({spec.name!r} split {spec.split!r}): {what}",
        hint="give the data set and split the store was made from, or dump a store for this one with dump-teacher",
    )


def _compute_content_digest(source: DataSource) -> str:
    if source.identity == "weak":
        return hashlib.sha256(b"weak\n" + label_digest(source.labels, source.num_classes).encode()).hexdigest()
    if isinstance(source, TokenSource):
        return source.content().hex()
    if isinstance(source, ArraySource):
        digest = hashlib.sha256(f"{source.examples.dtype.str} {source.examples.shape[1:]}\n".encode())
    else:
        digest = hashlib.sha256(b"files\n")
    for row in range(len(source)):
        raw = source.raw(row)
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


@contextmanager
def _one_at_a_time(cache: Path | None) -> Iterator[None]:
    """Let one process at a time compute what a cache file will hold; without a cache or locks, all of them do."""
    descriptor = None
    with suppress(OSError):
        if cache is not None:
            lock = cache.parent.with_name("locks") / cache.name
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _cache_file(fingerprint: str) -> Path:
    return cache_folder() / "content" / f"{fingerprint}.sha256"


def _read_cached(path: Path) -> str | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return text if len(text) == 64 and set(text) <= set("0123456789abcdef") else None


def _write_cached(path: Path, digest: str) -> None:
    # A cache that cannot be written costs time, never correctness; the next run reads the files again.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_text(digest + "\n")
        os.replace(part, path)
    except OSError:
        return
