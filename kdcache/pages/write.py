"""`report`: from a store or runs to one HTML file on disk, whole or not there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kdcache.datasets.cards import open_dataset
from kdcache.errors import ConfigError, NotFoundError
from kdcache.html.markup import Html
from kdcache.pages.runs_page import runs_page
from kdcache.pages.store_page import store_page
from kdcache.pages.thumbnails import thumbnails
from kdcache.pages.wording import place_name
from kdcache.specs import DatasetSpec
from kdcache.stats import StoreStats, store_stats
from kdcache.store.files import write_atomic
from kdcache.store.manifest_file import ROOT_FILE, read_manifest
from kdcache.urls import is_url

CONTRADICTIONS = 24  # a screenful of pictures


def is_store(place: str) -> bool:
    """Whether a place is a store (a folder with the root of one, or a URL) and not runs.

    Raises:
        NotFoundError: there is nothing at a path.
    """
    if is_url(place):
        return True
    if not Path(place).exists():
        raise NotFoundError(
            f"{place}: nothing there; expected a store or a folder of runs",
            hint="kdcache dump-teacher makes a store, kdcache distill a run",
        )
    return (Path(place) / ROOT_FILE).is_file()


def write_store_report(
    location: str, *, out: Path | None = None, dataset: str = "", data_root: Path | None = None
) -> tuple[Path, StoreStats]:
    """Write the page about a store.

    Args:
        location: a sealed store.
        out: the file; None: NAME-report.html in the working folder. An existing file is replaced.
        dataset: data card, to show the contradicted examples; "" with a `data_root` is the store's own card.
        data_root: folder of the data set.

    Returns:
        The file and the statistics in it.

    Raises:
        NotFoundError, CorruptStoreError, UnfinishedStoreError: as `store_stats`.
        IncompatibleError: the data set is not the store's.
        ResourceError: the file cannot be written.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", place_name(location).removesuffix(".zarr").rpartition("/")[2])
    file = _checked_file(out if out is not None else Path(f"{name}-report.html"))
    stats = store_stats(location, contradictions=CONTRADICTIONS)
    pictures: dict[int, Html] = {}
    remark = "Give --dataset NAME (and --data-root FOLDER) to see the examples here."
    if dataset or data_root is not None:
        spec: DatasetSpec = read_manifest(location).dataset
        source = open_dataset(dataset or spec.card, split=spec.split, root=data_root)
        pictures = thumbnails(source, stats.contradictions)
        remark = "" if pictures else "The examples are not images of one or three channels."
    write_atomic(file, store_page(stats, thumbnails=pictures, remark=remark).encode())
    return file, stats


def write_runs_report(places: Sequence[str | Path], *, out: Path) -> Path:
    """Write the page about finished runs; returns the file.

    Raises:
        NotFoundError, ConfigError: as `compare_runs`.
        ResourceError: the file cannot be written.
    """
    file = _checked_file(out)
    write_atomic(file, runs_page(places).encode())
    return file


def _checked_file(path: Path) -> Path:
    """Refuse a folder, and a place whose folder is missing, before minutes of work."""
    if path.is_dir():
        raise ConfigError(f"{path}: expected a file for the report, found a folder", hint=f"--html {path}/report.html")
    if not path.parent.is_dir():
        raise NotFoundError(f"{path.parent}: no such folder for the report", hint=f"mkdir -p {path.parent}")
    return path
