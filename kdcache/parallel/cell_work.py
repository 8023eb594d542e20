"""One cell, run: here, in a worker process or on a Dask worker. Orders and reports are JSON text.

Whatever the cell raises becomes part of the report; only an interrupt passes through.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdcache.errors import ConfigError, KdcacheError
from kdcache.parallel.cell_files import CellFiles, FinishedCell, utc_now
from kdcache.parallel.cells import plain_json
from kdcache.parallel.threads import limited_threads

Function = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class CellOrder:
    """What a worker is told.

    Attributes:
        name, arguments, digest: of the cell; needed: the stamps of the results it needs.
        reference: module:function or file.py:function.
        path: where modules are looked for beside the worker's own places.
        folder: the grid's, absolute; token: of the sitting that holds it.
        threads: to compute with; None leaves that to the worker.
    """

    name: str
    arguments: Mapping[str, Any]
    digest: str
    needed: Mapping[str, str]
    reference: str
    path: tuple[str, ...]
    folder: str
    token: str
    threads: int | None

    @classmethod
    def from_text(cls, text: str) -> CellOrder:
        """Read `to_text` back."""
        return cls(**json.loads(text))

    def to_text(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, kw_only=True)
class CellReport:
    """What a worker says: a result, or an error with its traceback."""

    name: str
    result: Mapping[str, Any] | None = None
    seconds: float = 0.0
    error: str = ""
    traceback: str = ""

    @classmethod
    def from_text(cls, text: str) -> CellReport:
        """Read `to_text` back."""
        return cls(**json.loads(text))

    def to_text(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


def do_cell(text: str) -> str:
    """Run the cell that an order names and report; this is what Dask workers are given."""
    return run_cell(CellOrder.from_text(text)).to_text()


def run_cell(order: CellOrder, function: Function | None = None) -> CellReport:
    """Run a cell, keep its result where the grid's folder is shared with this process, and report.

    Args:
        order: the cell.
        function: what it names, when that is at hand.
    """
    started = time.monotonic()
    files = CellFiles(Path(order.folder))
    try:
        shared = files.is_shared_with(order.token)
        with files.only_here(order.name) if shared else nullcontext():
            found = files.read(order.name) if shared else None
            if found is not None and found.digest == order.digest:  # by one that outlived its sitting
                return CellReport(name=order.name, result=found.result, seconds=found.seconds)
            with limited_threads(order.threads):
                result = (function or load(order.reference, order.path))(order.arguments)
            result = plain_json(result, subject=f"cell {order.name}: its result")
            seconds = time.monotonic() - started
            if shared:
                files.write(finished_cell(order, result, seconds))
            return CellReport(name=order.name, result=result, seconds=seconds)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - one cell must not end the others
        return CellReport(name=order.name, error=_message(error), traceback=traceback.format_exc())


def finished_cell(order: CellOrder, result: Mapping[str, Any], seconds: float) -> FinishedCell:
    """The result file of a cell."""
    return FinishedCell(
        name=order.name,
        arguments=order.arguments,
        digest=order.digest,
        result=result,
        seconds=round(seconds, 3),
        finished=utc_now(),
        needed=order.needed,
        run=secrets.token_hex(8),
    )


def load(reference: str, path: tuple[str, ...] = ()) -> Function:
    """Import a function.

    Args:
        reference: module:function or file.py:function.
        path: folders that are searched after those of `sys.path`.

    Raises:
        ConfigError: it is not there.
    """
    sys.path.extend(entry for entry in path if entry not in sys.path and os.path.exists(entry))
    place, _, name = reference.rpartition(":")
    try:
        module = _from_file(place) if place.endswith(".py") else importlib.import_module(place)
        function: Function = getattr(module, name)
    except (ImportError, AttributeError, OSError) as error:
        raise ConfigError(
            f"{reference}: the worker cannot import it ({error})",
            hint="every worker needs the same code: PYTHONPATH or the same folder",
        ) from error
    return function


def _from_file(path: str) -> Any:
    name = f"kdcache_cells_{Path(path).stem}"
    module = sys.modules.get(name)
    if module is None or module.__file__ != path:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return module


def _message(error: BaseException) -> str:
    if isinstance(error, KdcacheError):
        return str(error)
    first = (str(error).strip() or "without a message").splitlines()[0]
    return f"{type(error).__name__}: {first}"
