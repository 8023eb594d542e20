"""The result on stdout: one JSON document, or text that a person reads. A closed pipe is not an error."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from kdcache.canonical import to_json

_state = {"open": True}


def restart_stdout() -> None:
    """Forget a pipe that an earlier command in this process found closed."""
    _state["open"] = True


def write_result(text: str) -> None:
    """Write text to stdout; when the reader has gone (`| head`), drop it and everything after it.

    Of several processes under torchrun only the first answers: stdout carries one result.
    """
    if not _state["open"] or os.environ.get("RANK", "0") != "0":
        return
    try:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()


def close_stdout(code: int) -> int:
    """Flush stdout and return the exit code, whatever became of the reader."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
    return code


def _drop_stdout() -> None:
    _state["open"] = False
    # The interpreter flushes stdout once more when it exits; give that flush somewhere to go.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_json(value: Any) -> None:
    """Write one JSON document; dataclasses become objects, paths strings, NaN and infinity null."""
    write_result(json.dumps(_plain(to_json(value)), indent=2, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "item"):  # a numpy number
        return _plain(value.item())
    return str(value)


def table(rows: Sequence[Sequence[str]], *, header: Sequence[str], right: Sequence[int] = ()) -> str:
    """Text columns under a header; the columns numbered in `right` are right-aligned."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def joined(line: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([joined(lines[0]), rule, *[joined(line) for line in lines[1:]]])


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Name and value, one pair a line, the values aligned."""
    width = max((len(name) for name, _ in pairs), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in pairs)


def human_bytes(count: float) -> str:
    """1234567 -> "1.2 MB"; powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
