"""`stats`: one streamed pass over a store, block by block, all figures at once. Reads bytes, writes nothing.

Memory holds one block of two views and the sums, twice: it grows with k and K, not with N or V. Blocks may be counted
by other processes; their sums are added in the order of rows, so the figures do not depend on who counted.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.errors import ConfigError
from kdcache.progress import Progress
from kdcache.specs import StoreManifest
from kdcache.stats.block_sums import SurveySums
from kdcache.stats.figures import AtTemperature, StoreStats
from kdcache.stats.rows import confused_pairs
from kdcache.store.blocks import block_at
from kdcache.store.info import bytes_by_view, describe
from kdcache.store.location import Location
from kdcache.store.reader import StoreReader, open_reader
from kdcache.store.roots import root_of
from kdcache.urls import clean_url
from kdcache.workers.opened import opened
from kdcache.workers.tasks import ALONE, Answers, Order, Workforce, in_order, place_for

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
CONTRADICTIONS = 20
GOOD_COSINE = 0.99
JUDGED = (1.0, 4.0)  # temperatures the suggested k answers for


def store_stats(
    location: str | Path,
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    contradictions: int = CONTRADICTIONS,
    force: Workforce = ALONE,
) -> StoreStats:
    """Statistics of a sealed store, every block checked against the ledger on the way.

    Args:
        location: the store.
        temperatures: distinct T > 0, no unit.
        contradictions: how many rows that contradict their label are named.
        force: who counts the blocks; the figures are the same, bit for bit, on like machines.

    Raises:
        ConfigError: a temperature or count out of range; Dask workers asked for a store on a web server.
        NotFoundError, IncompatibleError, UnfinishedStoreError, CorruptStoreError: as `open_reader`, and damage in a
            block as `StoreReader.block`. RemoteError, ResourceError: as `in_order`.
    """
    chosen = _checked(temperatures, contradictions)
    copied_here = _refuse_unlisted(location, force)
    started = time.perf_counter()
    reader = open_reader(location)
    manifest = reader.manifest
    total = SurveySums(manifest, chosen, contradictions)
    rows = manifest.dataset.num_rows * manifest.num_views
    with torch.inference_mode(), Progress(rows, "rows", label="stats", keep=False) as progress:
        if force.alone:
            parts = _sums_here(reader, chosen, contradictions, progress)
        else:
            parts = _sums_of_workers(force, location, reader, chosen, contradictions, progress)
        with closing(parts):
            for part in parts:
                total.add_bytes(part)
    seconds = time.perf_counter() - started
    copy = reader.folder if copied_here else None  # all chunks are there by now, also of a place that lists nothing
    return _result(total, manifest, describe(location, copy=copy), bytes_by_view(location, copy=copy), seconds)


def _checked(temperatures: Sequence[float], contradictions: int) -> tuple[float, ...]:
    chosen = tuple(dict.fromkeys(float(value) for value in temperatures))
    wrong = [value for value in chosen if not 0 < value < float("inf")]
    if wrong or not chosen:
        found = f"{wrong[0]:g}" if wrong else "none"
        raise ConfigError(f"temperatures: expected positive numbers, found {found}", hint="--temperature 1,2,4,8")
    if contradictions < 0:
        raise ConfigError(f"contradictions: expected 0 or more rows, found {contradictions}")
    return chosen


def _refuse_unlisted(location: str | Path, force: Workforce) -> bool:
    """Whether every chunk will be under this process's `StoreReader.folder`; refuses where nobody could say sizes."""
    root = root_of(location)
    if not force.dask or not isinstance(root, Location):
        return True
    if root.read_only:
        raise ConfigError(
            f"{root}: a web server does not say how large files are, and Dask workers keep theirs to themselves",
            hint="--workers N reads them here; or kdcache pull it to a folder that the workers share",
        )
    return False


def survey_block(order: Order) -> bytes:
    """A worker's part of `store_stats`: the sums of one block of rows in every view."""
    reader = opened(str(order["location"]), str(order["run"]))
    sums = SurveySums(reader.manifest, order["temperatures"], int(order["contradictions"]))
    with torch.inference_mode():
        sums.count_block(reader, int(order["block"]), lambda rows: None)
    return sums.to_bytes()


def _sums_here(reader: StoreReader, temperatures: Sequence[float], contradictions: int, progress: Progress) -> Answers:
    """Each block's sums, by this process."""
    for number in range(reader.manifest.blocks_per_view):
        sums = SurveySums(reader.manifest, temperatures, contradictions)
        sums.count_block(reader, number, progress.update)
        yield sums.to_bytes()


def _sums_of_workers(
    force: Workforce,
    location: str | Path,
    reader: StoreReader,
    temperatures: Sequence[float],
    contradictions: int,
    progress: Progress,
) -> Answers:
    """Each block's sums, in the order of rows, whoever makes them."""
    manifest = reader.manifest
    common = {
        "location": place_for(location, force),
        "run": uuid.uuid4().hex,
        "temperatures": list(temperatures),
        "contradictions": contradictions,
    }
    orders = ({**common, "block": number} for number in range(manifest.blocks_per_view))
    for number, found in enumerate(in_order(force, survey_block, orders)):
        progress.update(block_at(manifest, 0, number).rows * manifest.num_views)
        yield found


def _result(
    total: SurveySums, manifest: StoreManifest, facts: dict[str, Any], by_view: dict[str, list[int]], seconds: float
) -> StoreStats:
    """The figures, with what `describe` says about bytes."""
    data, codec = manifest.dataset, manifest.codec
    tempered = tuple(sums.result() for sums in total.tempered)
    names = class_names(manifest)
    means, seen = _class_means(total)
    return StoreStats(
        location=clean_url(str(facts["location"])),
        rows=data.num_rows,
        counted=total.counted,
        classes=data.num_classes,
        topk=codec.topk,
        views=manifest.num_views,
        policy=manifest.views.policy,
        mixed=total.mixed,
        dataset=data.name,
        split=data.split,
        teacher=manifest.teacher.source,
        precision=codec.precision,
        store_key=manifest.store_key,
        root_digest=manifest.root_digest,
        figures=total.teacher.result(),
        temperatures=tempered,
        suggested_topk=suggested_topk(tempered),
        agreement=total.agreement.result(),
        by_class=() if total.mixed else total.teacher.by_class(names),
        confused=() if means is None else confused_pairs(means, seen, names),
        contradictions=total.contradicted.result(names),
        bytes_on_disk=int(facts["bytes_on_disk"]),
        bytes_by_array={name: int(array["bytes_on_disk"]) for name, array in facts["arrays"].items()},
        bytes_by_view=by_view,
        full_logits_bytes=int(facts["full_logits_bytes"]),
        seconds=round(seconds, 3),
        rows_per_second=round(data.num_rows * manifest.num_views / max(seconds, 1e-9)),
        class_means=means,
    )


def _class_means(total: SurveySums) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_]]:
    """(K, K) means, 0 in the row of a class without rows, and (K,) which have rows."""
    if total.means is None:
        return None, np.zeros(0, dtype=bool)
    summed = total.means.total()
    rows = summed.sum(dim=1, keepdim=True)
    return (summed / rows.clamp(min=1e-300)).float().numpy(), (rows[:, 0] > 0).numpy()


def suggested_topk(tempered: Sequence[AtTemperature]) -> int | None:
    """The smallest stored k whose gradient cosine is at least 0.99 at every T from 1 to 4; None when none is.

    Above T=4 the teacher is nearly even and only all K classes would do; few train there.
    """
    judged = [at for at in tempered if JUDGED[0] <= at.temperature <= JUDGED[1]]
    if not judged:
        return None
    worst = [min(cosines) for cosines in zip(*(at.gradient_cosine for at in judged), strict=True)]
    return next((k for k, cosine in enumerate(worst, start=1) if cosine >= GOOD_COSINE), None)


def class_names(manifest: StoreManifest) -> list[str]:
    """K names: the data set's where it has that many, else the numbers."""
    given = manifest.dataset.class_names
    count = manifest.dataset.num_classes
    return list(given) if len(given) == count else [str(number) for number in range(count)]
