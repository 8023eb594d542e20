"""What a worker says at its end, as one line of JSON, and what its coordinator does about it. No torch, no stores."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

from kdcache import errors
from kdcache.errors import KdcacheError, LockedError
from kdcache.progress import note


def report_done(rows: int) -> str:
    """What a worker says at its end: how many rows it committed."""
    return json.dumps({"rows": rows})


def reported(work: Callable[[], int]) -> str:
    """Do a worker's work, which gives the rows it committed; the report of what became of it. Never raises."""
    try:
        return report_done(work())
    except Exception as error:  # noqa: BLE001 - it goes to the coordinator, which raises it
        if not isinstance(error, KdcacheError):
            traceback.print_exception(error, file=sys.stderr)
        return report_failure(error)


def report_failure(error: BaseException) -> str:
    """What a worker says when it cannot go on; errors of kdcache keep their class, message and hint."""
    if isinstance(error, KdcacheError):
        return json.dumps({"error": type(error).__name__, "message": error.message, "hint": error.hint})
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        hint = "fewer --workers or a smaller --batch-size; the same command then continues"
        return json.dumps({"error": "ResourceError", "message": f"a worker is out of memory: {first}", "hint": hint})
    return json.dumps({"error": "", "message": f"{type(error).__name__}: {first}", "hint": ""})


def raise_report(report: str | None) -> bool:
    """Raise what a report says went wrong; whether the worker ended as it should."""
    if report is None:
        note("a worker was killed; its block goes to another one")
        return False
    value: dict[str, Any] = json.loads(report)
    if "error" not in value:
        return True
    error = error_of(value)
    if isinstance(error, LockedError):
        # It found its coordinator gone while that lives: a worker that was stopped for long. Another one goes on.
        note(f"a worker ended: {error.message}")
        return False
    raise error


def error_of(value: dict[str, Any]) -> Exception:
    """The error that `report_failure` told of; one that is not kdcache's own comes back as a RuntimeError."""
    kind = getattr(errors, str(value["error"]), None)
    if isinstance(kind, type) and issubclass(kind, KdcacheError):
        return kind(str(value["message"]), hint=str(value["hint"]))
    return RuntimeError(f"in a worker: {value['message']}")
