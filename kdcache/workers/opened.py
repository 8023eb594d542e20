"""A store that a worker reads in many small tasks, opened once for each command."""

from __future__ import annotations

from functools import lru_cache

from kdcache.store.reader import StoreReader, open_reader


@lru_cache(maxsize=4)
def opened(location: str, run: str) -> StoreReader:
    """The store at a place; `run` names the command, because a worker on a cluster outlives many."""
    return open_reader(location)
