"""The teacher's mean opinion of each class, (K, K), from a store's blocks: alone, or shared among workers."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.store.reader import StoreReader
from kdcache.targets.similarity import ClassMeanSums
from kdcache.targets.soft import TARGET_COLUMNS, SoftTargets
from kdcache.workers.opened import opened
from kdcache.workers.tasks import ALONE, Order, Workforce, in_order, pack, place_for, unpack


def class_mean(
    reader: StoreReader,
    temperature: float,
    *,
    rows: tuple[int, int] | None = None,
    force: Workforce = ALONE,
    place: str = "",
) -> NDArray[np.float32]:
    """(K, K) mean p^T of each class's rows in view 0, the tail's mass spread evenly; a class without rows is uniform.

    Args:
        reader: an open store.
        temperature: T.
        rows: [start, stop); None takes all.
        place: how workers find the store; "" as the reader names it.
        force: who adds up; the blocks' sums are added in the order of rows, so the bits do not depend on it.
    """
    first, last = rows or (0, reader.manifest.dataset.num_rows)
    size = reader.manifest.block_rows
    total = ClassMeanSums(reader.manifest.dataset.num_classes)
    common = {
        "store": place_for(place or reader.location, force),
        "run": uuid.uuid4().hex,
        "temperature": temperature,
        "rows": [first, last],
    }
    blocks = range(first // size, -(-last // size))
    if force.alone:
        answers: Iterable[bytes] = (_block_means(reader, block, temperature, first, last) for block in blocks)
    else:
        answers = in_order(force, class_mean_of_block, ({**common, "block": block} for block in blocks))
    for found in answers:
        total.add_parts({name: torch.from_numpy(values) for name, values in unpack(found).items()})
    means: NDArray[np.float32] = total.means().numpy()
    return means


def class_mean_of_block(order: Order) -> bytes:
    """A worker's part of `class_mean`: the sums of one block."""
    reader = opened(str(order["store"]), str(order["run"]))
    first, last = order["rows"]
    return _block_means(reader, int(order["block"]), float(order["temperature"]), int(first), int(last))


def _block_means(reader: StoreReader, block: int, temperature: float, first: int, last: int) -> bytes:
    columns = reader.block(0, block)
    start = block * reader.manifest.block_rows
    here = slice(max(first - start, 0), max(last - start, 0))
    chosen = {name: columns[name][here] for name in (*TARGET_COLUMNS, "label")}
    classes = reader.manifest.dataset.num_classes
    sums = ClassMeanSums(classes)
    sums.add(SoftTargets.from_columns(chosen, chosen["label"], num_classes=classes), temperature)
    return pack({name: values.numpy() for name, values in sums.parts().items()})
