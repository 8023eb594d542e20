"""How messages name what was probably meant: the nearest known names of an unknown one. Nothing else."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest_names(name: str, known: Iterable[str], *, count: int = 3) -> tuple[str, ...]:
    """The known names most like `name`, best first; empty when none is similar.

    Case and separators are ignored in the comparison, so "ResNet8X4" and "wrn_16_2" find their models.
    """
    folded: dict[str, str] = {}
    for candidate in known:
        folded.setdefault(_fold(candidate), candidate)
    close = difflib.get_close_matches(_fold(name), list(folded), n=count, cutoff=0.5)
    return tuple(folded[match] for match in close)


def did_you_mean(name: str, known: Iterable[str], *, listing: str = "") -> str:
    """A hint for an unknown name: the nearest known ones, else all of them (or `listing` when there are many).

    Args:
        name: what was asked for.
        known: every name that would have worked.
        listing: what to say instead of a list of more than 12 names.
    """
    names = sorted(known)
    close = nearest_names(name, names)
    if close:
        return "did you mean " + " or ".join(repr(match) for match in close) + "?"
    return listing if listing and len(names) > 12 else "known names: " + ", ".join(names)


def _fold(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
