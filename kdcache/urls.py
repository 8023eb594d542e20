"""URLs as kdcache prints them: without user, password, query or fragment. Text only; nothing is opened or decoded.

Credentials travel in URLs (`https://user:password@host`, signed links). Whatever reaches a screen, a log, a manifest
or a result file goes through here first.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from kdcache.errors import ConfigError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>|,)\]}]*")
# Environment variables whose values are secrets of an object store: never to be seen in an error.
_SECRET_NAMES = re.compile(r"(AWS|AZURE|GOOGLE|GCS|S3).*(SECRET|TOKEN|KEY|SAS|PASSWORD)", re.IGNORECASE)
_MISTYPED = re.compile(r"(s3|gs|az|https?|file)(?::/|//)(?!/)")
_SHORTEST_SECRET = 8  # shorter values ("test") are words that messages need


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL rather than a local path."""
    return isinstance(place, str) and _SCHEME.match(place) is not None


def clean_url(place: str | Path) -> str:
    """A place without credentials: user, password, query (signatures) and fragment are cut off; a path as it is."""
    text = str(place)
    if not is_url(text):
        return text
    scheme, rest = text.split("://", 1)
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rsplit('@', 1)[-1]}{slash}{path}"


def clean_text(text: str) -> str:
    """A message with every URL in it cleaned, and every secret of the environment replaced by asterisks."""
    cleaned = _URL_IN_TEXT.sub(lambda match: clean_url(match[0]), text)
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAMES.search(name):
            cleaned = cleaned.replace(value, "***")
    return cleaned


def refuse_mistyped(path: str) -> None:
    """Refuse `s3//bucket/x`, and `s3:/bucket/x` as pathlib makes it of a URL: no folder of that name is meant.

    Raises:
        ConfigError: with the URL that was meant.
    """
    near = _MISTYPED.match(path)
    if near:
        meant = clean_url(f"{near[1]}://{path[near.end() :]}")
        raise ConfigError(f"{meant}: expected a path or a URL, found a mixture", hint=f"did you mean {meant}?")
