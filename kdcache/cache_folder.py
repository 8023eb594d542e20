"""Where this user's caches lie: copies and maps of stores, digests of data that was read, fetched weights."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """KDCACHE_CACHE_DIR; else `kdcache` under KDCACHE_CACHE, XDG_CACHE_HOME or ~/.cache. It need not exist."""
    if itself := os.environ.get("KDCACHE_CACHE_DIR"):
        return Path(itself)
    stated = os.environ.get("KDCACHE_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return (Path(stated) if stated else Path.home() / ".cache") / "kdcache"
