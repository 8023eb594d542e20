"""From what a user names (a path, a URL, a Location) to where a store's files are read from. No requests are made."""

from __future__ import annotations

from pathlib import Path

from kdcache.store.location import Location


def root_of(place: str | Path | Location) -> Path | Location:
    """The local folder a path or file:// URL names, or the Location of any other URL.

    Raises:
        ConfigError: an unknown scheme or a URL without a bucket or host.
    """
    location = Location.at(place)
    return location if location.folder is None else location.folder
