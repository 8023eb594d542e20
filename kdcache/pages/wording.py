"""Small texts that pages share: sizes, places, lists of facts. Places lose what is private: folders and credentials."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from kdcache.html.markup import Child, Html, element
from kdcache.urls import clean_url, is_url


def bytes_text(count: float) -> str:
    """1234567 -> "1.2 MB"; powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def place_name(location: str) -> str:
    """What a page calls a place: the last part of a path, a URL without user, password, query and fragment.

    A report is mailed around: nobody needs to read whose home folder it came from.
    """
    if is_url(location):
        return clean_url(location)
    return Path(location).name or Path(location).resolve().name


def shell_word(place: str) -> str:
    """A place as one word of a command line that people copy: it runs nothing and is no option, whatever its name."""
    return shlex.quote(f"./{place}" if place.startswith("-") else place)


def shared_facts(pairs: Sequence[tuple[str, Child]]) -> Html:
    """Names with their values."""
    return element(
        "dl", {"class": "facts"}, [(element("dt", {}, name), element("dd", {}, value)) for name, value in pairs]
    )
