"""One place for all caches, whatever names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcache.cache_folder import cache_folder


def test_the_most_particular_name_wins_and_every_cache_follows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KDCACHE_CACHE_DIR", "KDCACHE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == Path.home() / ".cache" / "kdcache"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/kdcache")
    monkeypatch.setenv("KDCACHE_CACHE", "/fast")
    assert cache_folder() == Path("/fast/kdcache")
    monkeypatch.setenv("KDCACHE_CACHE_DIR", "/itself")
    assert cache_folder() == Path("/itself")
