"""`verify` and `push` by many workers: what is asked of each, and how the answers become one. No torch.

The store is only read, in orders of a block or a few; what is found comes back in the order of the blocks, so that the
result is that of one process.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from kdcache.specs import StoreManifest
from kdcache.store.blocks import block_at
from kdcache.store.files import Root
from kdcache.store.manifest_file import read_manifest
from kdcache.store.roots import root_of
from kdcache.store.verify import REMOTE_THREADS, Committed, Problem, VerifyReport, block_problems, verify_store
from kdcache.workers.tasks import ALONE, Order, Workforce, in_order, place_for

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
