"""`verify` and `push` by many workers: what is asked of each, and how the answers become one. No torch.

The store is only read, in orders of a block or a few; what is found comes back in the order of the blocks, so that the
result is that of one process.
"""

from __future__ import annotations

import json
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from kdcache.specs import StoreManifest
from kdcache.store.block_reader import check_block, read_block
from kdcache.store.blocks import block_at
from kdcache.store.files import Root
from kdcache.store.layout import layout_of
from kdcache.store.location import Location
from kdcache.store.manifest_file import read_manifest
from kdcache.store.publish import upload_chunks
from kdcache.store.roots import root_of
from kdcache.store.transfer import Transfer, push_store
from kdcache.store.verify import REMOTE_THREADS, Committed, Problem, VerifyReport, block_problems, verify_store
from kdcache.workers.tasks import AHEAD, ALONE, Answers, Order, Workforce, in_order, place_for

TASK_ROWS = 65_536  # small blocks go out together: an order costs 0.2 ms here, 2 ms on a cluster


def verify(location: str | Path, *, deep: bool = False, force: Workforce = ALONE) -> VerifyReport:
    """`verify_store` with the blocks shared among workers: the same report, problems in the same order.

    Args:
        location: local folder or URL, under which every worker finds the store.
        deep: as `verify_store`.
        force: who works.

    Raises:
        As `verify_store` and `in_order`.
    """
    if force.alone:
        return verify_store(location, deep=deep)
    place, run = place_for(location, force), uuid.uuid4().hex

    def check(root: Root, blocks: Iterable[Committed]) -> Iterator[list[Problem]]:
        least = 1 if isinstance(root, Path) else REMOTE_THREADS
        orders = (
            {"location": place, "run": run, "deep": deep, "blocks": group} for group in _groups(blocks, least=least)
        )
        for reply in in_order(force, check_blocks, orders):
            for found in json.loads(reply):
                yield [_problem(value) for value in found]

    return verify_store(location, deep=deep, check_blocks=check)


def check_blocks(order: Order) -> bytes:
    """A worker's part of `verify`: for each block of the order the problems, as JSON."""
    root, manifest = _opened(str(order["location"]), str(order["run"]))
    blocks = [(block_at(manifest, int(view), int(block)), str(sha256)) for view, block, sha256 in order["blocks"]]
    found = block_problems(root, manifest, blocks, deep=bool(order["deep"]))
    return json.dumps([[asdict(problem) for problem in problems] for problems in found]).encode()


def push(store: str, target: str, *, force: Workforce = ALONE) -> Transfer:
    """`push_store` with the blocks shared among workers, each of which checks a block and uploads it.

    Workers of this machine are threads here: checking takes 0.25 s of processor time for 10^6 rows (k=10), less than a
    new process takes to start, and its decompression and hashing let other threads run.

    The manifest goes last, from this process, so that a damaged block is found before anything is published; blocks
    that were sent before it stay, unseen, for the push that continues.

    Args:
        store: local folder, which every worker sees.
        target: as `push_store`; workers on a cluster need their own credentials for it in their environment.
        force: who works.

    Raises:
        As `push_store` and `in_order`.
    """
    if force.alone:
        return push_store(store, target)
    place, run = place_for(store, force), uuid.uuid4().hex
    there = place_for(target, force)

    def send(root: Path, committed: Sequence[Committed]) -> Iterator[int]:
        orders = (
            {"location": place, "run": run, "target": there, "view": block.view, "block": block.block, "sha256": sha256}
            for block, sha256 in committed
        )
        replies = in_order(force, upload_block, orders) if force.dask else _in_threads(force.workers, orders)
        with closing(replies):
            for reply in replies:
                yield int(reply)

    return push_store(store, target, send_blocks=send)


def upload_block(order: Order) -> bytes:
    """A worker's part of `push`: a block compared with the ledger, then its chunks uploaded; their bytes."""
    root, manifest = _opened(str(order["location"]), str(order["run"]))
    assert isinstance(root, Path)
    block = block_at(manifest, int(order["view"]), int(order["block"]))
    check_block(root, manifest, block, read_block(root, manifest, layout_of(manifest), block), str(order["sha256"]))
    return b"%d" % upload_chunks(root, Location.at(str(order["target"])), manifest, block)


def _in_threads(count: int, orders: Iterable[Order]) -> Answers:
    with ThreadPoolExecutor(count, thread_name_prefix="kdcache-push") as pool:
        waiting: deque[Future[bytes]] = deque()
        try:
            for order in orders:
                waiting.append(pool.submit(upload_block, order))
                if len(waiting) >= AHEAD * count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@lru_cache(maxsize=4)
def _opened(location: str, run: str) -> tuple[Root, StoreManifest]:
    """A store, read once for each command: a worker on a cluster outlives many, and `run` names the command."""
    root = root_of(location)
    return root, read_manifest(root)


def _groups(blocks: Iterable[Committed], *, least: int) -> Iterator[list[tuple[int, int, str]]]:
    group: list[tuple[int, int, str]] = []
    rows = 0
    for block, sha256 in blocks:
        group.append((block.view, block.block, sha256))
        rows += block.rows
        if rows >= TASK_ROWS and len(group) >= least:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _problem(value: dict[str, Any]) -> Problem:
    rows = value.pop("rows")
    return Problem(**value, rows=None if rows is None else (int(rows[0]), int(rows[1])))
