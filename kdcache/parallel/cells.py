"""What a grid of cells is, and what came of it. Nothing here runs or writes anything."""

from __future__ import annotations

import graphlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.canonical import canonical_json, digest_of, to_json
from kdcache.errors import ConfigError
from kdcache.progress import duration

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,@-]{0,149}")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One piece of a grid: a function, its arguments, and the cells that must be finished before.

    Attributes:
        name: unique in the grid and safe as a file name.
        run: a top-level function of a module; from JSON arguments to a JSON result. It may be killed at any point and
            is then called again, so what it writes elsewhere must allow that (`distill` with `resume` does).
        arguments: any JSON; tuples become lists.
        needs: names of other cells of the grid.

    Raises:
        ConfigError: a name that is no file name, a function that cannot be imported, or arguments that are not JSON.
    """

    name: str
    run: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    arguments: Mapping[str, Any]
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"cell {self.name!r}: expected a name of letters, digits and ._+=,@- that starts with one of the first"
                " two, at most 150 long"
            )
        reference_to(self.run, subject=f"cell {self.name}")
        plain_json(self.arguments, subject=f"cell {self.name}: its arguments")

    @property
    def reference(self) -> str:
        """Where another process finds the function: module:function, or file.py:function for a script."""
        return reference_to(self.run, subject=f"cell {self.name}")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a cell has no result.

    Attributes:
        message: the error in one line.
        traceback: file with the traceback; None when the process was killed and left none.
    """

    message: str
    traceback: Path | None


@dataclass(frozen=True, kw_only=True)
class GridResult:
    """What came of a grid, in the order of its cells.

    Attributes:
        results: of every finished cell, by name, also of those finished in an earlier sitting.
        failed: why a cell failed, by name.
        not_run: cells that need a failed one: their name and its name.
        skipped: finished in an earlier sitting with the same arguments.
        seconds: how long each finished cell took; of one that was continued, its last part.
    """

    results: Mapping[str, Mapping[str, Any]]
    failed: Mapping[str, Failure]
    not_run: Mapping[str, str]
    skipped: tuple[str, ...]
    seconds: Mapping[str, float]

    @property
    def exit_code(self) -> int:
        """0 when every cell is finished, else 1: what a recipe exits with."""
        return int(bool(self.failed))

    def summary(self) -> str:
        """A few lines for people: how many cells, what failed and where its traceback is."""
        total = len(self.results) + len(self.failed) + len(self.not_run)
        before = f" ({len(self.skipped)} of them before)" if self.skipped else ""
        work = duration(sum(self.seconds.values()))
        lines = [
            f"{total} cells: {len(self.results)} finished{before}, {len(self.failed)} failed,"
            f" {len(self.not_run)} not run; {work} of work"
        ]
        for name, failure in self.failed.items():
            place = f"\n    traceback: {failure.traceback}" if failure.traceback else ""
            lines.append(f"  failed   {name}: {failure.message}{place}")
        for need in dict.fromkeys(self.not_run.values()):
            names = [name for name, other in self.not_run.items() if other == need]
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            lines.append(f"  not run  {shown}: need {need}, which failed")
        if self.failed:
            lines.append("  next: mend it and give the same command again: it runs only what is not finished")
        return "\n".join(lines)


def plain_json(value: Any, *, subject: str) -> Any:
    """A value as another process would get it: through JSON.

    Raises:
        ConfigError: it is not an object of JSON, or holds NaN or infinity.
    """
    try:
        plain = json.loads(canonical_json(to_json(value)))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{subject}: expected JSON, found something else ({error})",
            hint="text for paths and None for numbers that are not finite",
        ) from error
    if not isinstance(plain, dict):
        raise ConfigError(f"{subject}: expected an object of JSON (a dict), found {type(value).__name__}")
    return plain


def reference_to(function: Callable[..., Any], *, subject: str) -> str:
    """Where another process finds a function: module:function, or file.py:function when it is in a script.

    Raises:
        ConfigError: it is not a top-level function of a module or a script.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module == "__main__":
        main = sys.modules["__main__"]
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name if spec is not None else str(Path(file).resolve()) if file else None
    if module is None or not name.isidentifier():
        raise ConfigError(
            f"{subject}: expected a top-level function of a module, found {name or function!r}",
            hint="other processes import it by name: define it with def, outside of any function or class",
        )
    return f"{module}:{name}"


def in_order(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """The cells of a grid as they were given, needs before those that need them.

    Raises:
        ConfigError: a name twice, a need that is no cell, or cells that need each other.
    """
    by_name: dict[str, Cell] = {}
    for cell in cells:
        if cell.name in by_name:
            raise ConfigError(f"two cells are named {cell.name!r}; expected every name once")
        by_name[cell.name] = cell
    for cell in by_name.values():
        for need in cell.needs:
            if need not in by_name:
                raise ConfigError(f"cell {cell.name} needs {need!r}, which is no cell of the grid")
    try:
        graphlib.TopologicalSorter({cell.name: cell.needs for cell in by_name.values()}).prepare()
    except graphlib.CycleError as error:
        raise ConfigError(f"cells need each other in a circle: {' -> '.join(error.args[1])}") from error
    ordered: dict[str, Cell] = {}

    def place(cell: Cell) -> None:
        if cell.name not in ordered:
            for need in cell.needs:
                place(by_name[need])
            ordered[cell.name] = cell

    for cell in by_name.values():
        place(cell)
    return tuple(ordered.values())


def digests(cells: Iterable[Cell]) -> dict[str, str]:
    """What each result stands for: the digest of a cell's arguments and of its needs' digests.

    A cell is run again when its arguments change, or those of a cell it needs.

    Args:
        cells: needs before those that need them.
    """
    found: dict[str, str] = {}
    for cell in cells:
        needs = {need: found[need] for need in sorted(cell.needs)}
        found[cell.name] = digest_of({"arguments": to_json(cell.arguments), "needs": needs})
    return found
