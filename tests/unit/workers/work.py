"""Functions that the workers of tests run, by name. No torch and no pytest, so that workers start quickly."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcache.errors import NotFoundError
from kdcache.specs import StoreManifest
from kdcache.store.blocks import BlockId
from kdcache.workers.filling import Columns, Maker
from kdcache.workers.tasks import Order
from tests.store_cases import columns_of


def echo(order: Order) -> bytes:
    """The order's number, after a while; what it prints is nobody's answer."""
    time.sleep(float(order.get("seconds", 0)))
    sys.stdout.write("a worker speaks")
    return str(order["number"]).encode() * int(order.get("times", 1))


def who(order: Order) -> bytes:
    """The process."""
    return str(os.getpid()).encode()


def note_and_wait(order: Order) -> bytes:
    """Says which process did it, in a file; number 0 ends when the file `end` is there."""
    folder = Path(str(order["folder"]))
    with (folder / f"did-{order['number']}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    while int(order["number"]) == 0 and not (folder / "end").exists():
        time.sleep(0.01)
    return str(order["number"]).encode()


def missing(order: Order) -> bytes:
    """An error of kdcache."""
    raise NotFoundError(f"{order['number']}: not there", hint="look elsewhere")


def broken(order: Order) -> bytes:
    """An error of ours."""
    raise ZeroDivisionError("a bug")


def die(order: Order) -> bytes:
    """Killed, the first `deaths` times that the order is tried."""
    if int(order["number"]) == 3:
        _die_at(Path(str(order["folder"])), int(order["deaths"]))
    return str(order["number"]).encode()


def random_columns(request: Mapping[str, Any], manifest: StoreManifest) -> Maker:
    """Blocks of `store_cases`; whoever makes block 1 of view 0 first is killed at it."""

    def make(block: BlockId) -> Columns:
        time.sleep(0.02)
        if request["folder"] and (block.view, block.block) == (0, 1):
            _die_at(Path(str(request["folder"])), int(request["deaths"]))
        return columns_of(manifest, block)

    return make


def _die_at(folder: Path, deaths: int) -> None:
    for number in range(deaths):
        try:
            (folder / f"death-{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        os.kill(os.getpid(), signal.SIGKILL)
