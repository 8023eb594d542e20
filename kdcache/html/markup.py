"""HTML by construction: text is escaped, only `Html` passes through. Knows no page and no chart.

Names in a store or a run come from strangers. Everything that reaches a page goes through `element` or `text`, so there
is no place where a name could become markup.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping

# Not allowed in HTML text (U+0000, C0 controls), or able to reorder what a reader sees (bidirectional overrides).
_UNWANTED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9:-]*\Z")
_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})
# Attributes that could run code or load something; a page has no use for them.
_REFUSED = re.compile(r"(on.*|srcdoc|formaction|action)\Z")
_LINKS = ("#", "data:image/png;base64,")


class Html(str):
    """A piece of finished HTML; joining it with plain text gives plain text again, which is escaped once more."""

    __slots__ = ()


Child = str | int | float | None | Iterable["Child"]  # Html is a str; None is nothing
Attributes = Mapping[str, str | int | float | bool | None]


def text(value: object) -> Html:
    """Any value as escaped text; control characters and direction overrides become U+FFFD."""
    return Html(html.escape(_UNWANTED.sub("\ufffd", str(value)), quote=True))


def join(children: Iterable[Child]) -> Html:
    """Children side by side; plain strings and numbers are escaped."""
    return Html("".join(_child(child) for child in children))


def element(name: str, attributes: Attributes | None = None, *children: Child) -> Html:
    """One element.

    Args:
        name: tag, for example "p".
        attributes: values are escaped; True is an attribute without a value, False and None leave it out.
        children: text (escaped), numbers, `Html`, or iterables of these.

    Raises:
        ValueError: a name that is none, an attribute that runs code, or a link that leaves the page.
    """
    if not _NAME.match(name) or name in ("script", "style", "iframe", "object", "embed"):
        raise ValueError(f"element {name!r} is not for a page's content")
    opening = f"<{name}" + "".join(_attribute(key, value) for key, value in (attributes or {}).items()) + ">"
    if name in _VOID:
        return Html(opening)
    return Html(f"{opening}{join(children)}</{name}>")


def _child(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, str | int | float):
        return text(child)
    return join(child)


def _attribute(name: str, value: str | int | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    if not _NAME.match(name) or _REFUSED.match(name.lower()):
        raise ValueError(f"attribute {name!r} is not for a page's content")
    if name in ("href", "src", "xlink:href") and not is_safe_link(str(value)):
        raise ValueError(f"link {value!r:.60} leaves the page")
    if value is True:
        return f" {name}"
    shown = text(value).replace("\n", "&#10;")  # XML readers turn a bare line break in an attribute into a space
    return f' {name}="{shown}"'


def is_safe_link(link: str) -> bool:
    """Whether a link stays in the page, is one of our images, or is a plain relative path or an http(s) address."""
    if link.startswith(_LINKS):
        return True
    scheme = re.match(r"[^/?#]*:", link.strip().lower())
    return scheme.group() in ("http:", "https:") if scheme else not link.strip().startswith("//")
