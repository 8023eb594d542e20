"""Work of an earlier grid: what was made with other settings is set aside, so that an edited grid can be run again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TypeVar

from kdcache.errors import OtherRequestError
from kdcache.progress import note

Made = TypeVar("Made")


def made_at(place: str | Path, make: Callable[[], Made]) -> Made:
    """Make, continue or find a run or store at a place.

    Where one of other settings is there it is moved to PLACE.old-1 (or the next free number) and made anew: an edited
    grid trains what changed, and nothing is lost.

    Args:
        place: the run folder or store that `make` writes.
        make: does the work; called again after the move.
    """
    try:
        return make()
    except OtherRequestError as error:
        folder = Path(place)
        aside = next(path for n in count(1) if not (path := folder.with_name(f"{folder.name}.old-{n}")).exists())
        folder.rename(aside)
        note(f"{error.message}; kept as {aside}, made anew")
        return make()
