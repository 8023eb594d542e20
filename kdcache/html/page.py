"""A whole page in one file: shell, style, script, sections, tiles, tables. No network, no knowledge of stores.

The content security policy names the one script by its hash: markup that slipped in could neither run nor load.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from kdcache.html.markup import Child, Html, element, join, text
from kdcache.version import __version__


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page with a heading.

    Attributes:
        title: heading; also the entry in the page's navigation.
        anchor: id of the part, [a-z-].
        body: its content.
        lead: one sentence under the heading.
    """

    title: str
    anchor: str
    body: Html
    lead: Child = None


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        title: heading.
        numeric: right-aligned and sorted as numbers.
        unit: shown after the heading.
    """

    title: str
    numeric: bool = False
    unit: str = ""


def page(
    title: str, sections: Sequence[Section], *, subtitle: Child = None, top: Child = None, footer: Child = None
) -> str:
    """A complete HTML document.

    Args:
        title: heading and title of the page.
        sections: in order; each gets an entry in the navigation.
        subtitle: under the heading.
        top: above the first section, for example `tiles`.
        footer: before the line that names kdcache.
    """
    style, script = _asset("style.css"), _asset("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    )
    links = [element("a", {"href": f"#{part.anchor}"}, part.title) for part in sections]
    toggle = element("button", {"type": "button", "id": "theme", "aria-label": "Switch between light and dark"}, "◐")
    header = element(
        "header",
        {"class": "top"},
        element("div", {"class": "brand"}, element("span", {}, "kdcache"), toggle),
        element("h1", {}, title),
        element("div", {"class": "subtitle"}, subtitle) if subtitle is not None else None,
        element("nav", {"aria-label": "Parts of this page"}, links) if len(links) > 1 else None,
    )
    parts = [
        element(
            "section",
            {"id": part.anchor, "aria-labelledby": f"{part.anchor}-title"},
            element("h2", {"id": f"{part.anchor}-title"}, part.title),
            element("p", {"class": "lead"}, part.lead) if part.lead is not None else None,
            part.body,
        )
        for part in sections
    ]
    end = element("footer", {}, footer, element("p", {}, f"Written by kdcache {__version__}; this file loads nothing."))
    body = join([element("a", {"class": "skip", "href": "#main"}, "To the content"), header])
    main = element("main", {"id": "main"}, top, parts)
    tip = element("div", {"id": "tip", "role": "status", "hidden": True})
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"{body}\n{main}\n{end}\n{tip}\n<script>{script}</script>\n</body>\n</html>\n"
    )


def tiles(items: Sequence[tuple[str, str, str]]) -> Html:
    """Large figures: (name, value, remark) each."""
    shown = [
        element(
            "div",
            {"class": "tile"},
            element("dt", {}, name),
            element("dd", {}, value, element("small", {}, remark) if remark else None),
        )
        for name, value, remark in items
    ]
    return element("dl", {"class": "tiles"}, shown)


def grid(*children: Child) -> Html:
    """Figures side by side where there is room."""
    return element("div", {"class": "grid"}, children)


def figure(
    title: str, picture: Html, *, caption: Child = None, numbers: Html | None = None, wide: bool = False
) -> Html:
    """A titled picture with a caption and, folded away, the table of its numbers."""
    folded = (
        element("details", {"class": "numbers"}, element("summary", {}, "Numbers"), numbers)
        if numbers is not None
        else None
    )
    return element(
        "figure",
        {"class": "wide"} if wide else {},
        element("h3", {}, title),
        picture,
        element("figcaption", {}, caption) if caption is not None else None,
        folded,
    )


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Child]],
    *,
    caption: str,
    search: bool = False,
    keys: Sequence[Sequence[float | None]] | None = None,
) -> Html:
    """A table whose headings sort it and that can be searched; it is readable without script.

    Args:
        columns: C headings.
        rows: C cells each.
        caption: what the table holds, also for screen readers.
        search: show a field that keeps the rows with a given text.
        keys: for each row C numbers to sort by (None: by the cell's text); by default numeric cells are parsed.
    """
    heads = [
        element(
            "th",
            {"scope": "col", "class": "n" if column.numeric else None, "aria-sort": "none"},
            element("button", {"type": "button"}, column.title, f" ({column.unit})" if column.unit else None),
        )
        for column in columns
    ]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            element(
                "td",
                {"class": "n" if column.numeric else None, "data-key": keys[number][place] if keys else None},
                cell,
            )
            for place, (column, cell) in enumerate(zip(columns, row, strict=True))
        ]
        lines.append(element("tr", {}, cells))
    field = None
    if search:
        field = element(
            "label", {"class": "search"}, "Search ", element("input", {"type": "search", "autocomplete": "off"})
        )
    whole = element(
        "table",
        {},
        element("caption", {}, element("span", {}, caption)),
        element("thead", {}, element("tr", {}, heads)),
        element("tbody", {}, lines),
    )
    count = element("p", {"class": "count", "aria-live": "polite"}) if search else None
    scroll = element("div", {"class": "scroll", "tabindex": 0, "role": "region", "aria-label": caption}, whole)
    return element("div", {"class": "table"}, field, scroll, count)


def command(line: str) -> Html:
    """A command line to copy."""
    return element(
        "div",
        {"class": "command"},
        element("code", {}, line),
        element("button", {"type": "button", "class": "copy", "aria-label": f"Copy: {line}"}, "Copy"),
    )


def _asset(name: str) -> str:
    return (files("kdcache.html") / name).read_text(encoding="utf-8")
