"""Charts as SVG files of their own, for documents: no page, no script, no style sheet around them.

What a page gets from its style sheet is written into the file, colours as plain numbers, on a white ground. What only
a page can do (tooltips, the keyboard's focus) is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ConfigError
from kdcache.html.axes import WIDTH, label, picture
from kdcache.html.heatmap import palette, png_data
from kdcache.html.markup import Attributes, Child, Html, element

GAP = 24.0
TITLE = 26.0
LEGEND_LINE = 18.0
WIDE_LETTER = 7.4  # in the widest of the fonts named below; a viewer may have no other
# The light theme of style.css, as numbers: viewers of a lone SVG file know no custom properties.
COLOURS = {
    "--c0": "#2463c9",
    "--c1": "#d4690b",
    "--c2": "#11866a",
    "--c3": "#b23a86",
    "--c4": "#7452cf",
    "--c5": "#8c6d0f",
    "--c6": "#c93a4b",
    "--c7": "#52667a",
    "--cold": "#1f4fb3",
    "--warm": "#e2711d",
}
STYLE = (
    "text{fill:#5d6878;font:12px system-ui,'Segoe UI',Roboto,'Noto Sans','Liberation Sans',sans-serif}"
    ".axis-title,.name{font-size:12.5px;fill:#1b2330}.value{fill:#1b2330}"
    ".title{font-size:14px;font-weight:600;fill:#1b2330}"
    ".rule{stroke:#e9ecf1}.base{stroke:#5d6878;opacity:.6}.guide{stroke:#5d6878;stroke-dasharray:3 3;opacity:.8}"
    ".line{fill:none;stroke:currentColor;stroke-width:2.25;stroke-linejoin:round;stroke-linecap:round}"
    ".dashed{stroke-dasharray:1 5}.band{fill:currentColor;opacity:.14}.bar{fill:currentColor}.bar.faint{opacity:.38}"
    ".dot{fill:currentColor;stroke:#fff;stroke-width:1.5}.dot.faint{opacity:.45;stroke:none}"
    ".whisker{stroke:currentColor;stroke-width:2}.thick{stroke-width:7;opacity:.28;stroke-linecap:round}"
    ".edge{fill:none;stroke:#5d6878;stroke-width:.5}"
)
_CHART = re.compile(r'<svg class="chart" viewBox="0 0 [\d.]+ ([\d.]+)"[^>]*>(.*)</svg>', re.DOTALL)
_HIT = re.compile(r'<rect class="hit"[^>]*?(?:/>|></rect>)')
_ONLY_ON_PAGES = re.compile(r' (?:data-tip|tabindex)="[^"]*"')
_MIX = re.compile(r"color-mix\(in oklch, var\((--\w+)\) ([\d.]+)%, var\((--\w+)\)\)")
_VARIABLE = re.compile(r"var\((--\w+)\)")


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart of a file.

    Attributes:
        title: written above it.
        chart: of `charts`, `bars` or `matrix`.
        legend: (name, colour) of its lines, where there are several.
    """

    title: str
    chart: Html
    legend: Sequence[tuple[str, str]] = ()


def svg_file(panels: Sequence[Panel], *, columns: int = 1) -> str:
    """Charts side by side as one SVG document; the same panels give the same bytes.

    Args:
        panels: at least one, row by row.
        columns: panels in a row.

    Raises:
        ConfigError: there is no panel, or one holds no chart of this package.
    """
    if not panels:
        raise ConfigError("svg_file: expected at least one chart, found none")
    drawn = [_drawn(panel) for panel in panels]
    rows = [drawn[start : start + columns] for start in range(0, len(drawn), columns)]
    style = Html(f"<style>{STYLE}</style>")
    width = min(columns, len(drawn)) * (WIDTH + GAP) + GAP
    top, boxes = GAP / 2, []
    for row in rows:
        for column, (body, _) in enumerate(row):
            place: Attributes = {"transform": f"translate({GAP + column * (WIDTH + GAP):g} {top:g})"}
            boxes.append(element("g", place, body))
        top += max(height for _, height in row) + GAP / 2
    ground = element("rect", {"width": "100%", "height": "100%", "fill": "#ffffff"})
    whole: Attributes = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": f"0 0 {width:g} {top:g}",
        "width": f"{width:g}",
        "height": f"{top:g}",
        "role": "img",
        "aria-label": "; ".join(panel.title for panel in panels),
    }
    return _plain(element("svg", whole, style, ground, *boxes)) + "\n"


def matrix(
    title: str,
    values: NDArray[np.floating],
    *,
    low: float,
    high: float,
    what: str = "",
    note: str = "",
    edges: Sequence[int] = (),
) -> Html:
    """A square matrix in colours, from white (low) to navy (high).

    Args:
        title: for screen readers.
        values: (K, K); values outside the scale have its end's colour.
        low, high: ends of the scale.
        what: a value is, written beside the scale.
        note: written below it.
        edges: rows (and columns) before which a thin line is drawn, to show groups.
    """
    levels = np.rint(255 * np.clip((values - low) / (high - low), 0, 1)).astype(np.uint8)
    side = WIDTH - 60.0
    left, cell = (WIDTH - side) / 2, side / len(values)
    image: Attributes = {
        "x": left,
        "y": 4,
        "width": side,
        "height": side,
        "href": png_data(palette()[levels]),
        "style": "image-rendering:pixelated",
    }
    marks: list[Child] = [element("image", image)]
    for edge in edges:
        here = round(edge * cell, 2)
        marks.append(
            element("path", {"class": "edge", "d": f"M{left + here:g} 4v{side:g}M{left:g} {4 + here:g}h{side:g}"})
        )
    ramp: Attributes = {
        "x": left,
        "y": side + 14,
        "width": 90,
        "height": 8,
        "href": png_data(palette()[None, :, :]),
        "preserveAspectRatio": "none",
    }
    marks += [
        element("rect", {"class": "edge", "x": left, "y": 4, "width": side, "height": side}),
        element("image", ramp),
        label(f"{what} {low:g} to {high:g}".strip(), left + 98, side + 22),
        *([label(note, left, side + 40)] if note else []),
    ]
    return picture(title, side + (48 if note else 30), marks)


def _drawn(panel: Panel) -> tuple[Html, float]:
    """A panel's content and its height."""
    found = _CHART.search(panel.chart)
    if found is None:
        raise ConfigError(f"svg_file: {panel.title!r} holds no chart of kdcache.html")
    inside = Html(_ONLY_ON_PAGES.sub("", _HIT.sub("", found[2])))
    parts: list[Child] = [label(panel.title, 0, 16, kind="title")]
    top, across = TITLE, 0.0
    for name, colour in panel.legend:
        room = 42 + WIDE_LETTER * len(name)
        if across and across + room > WIDTH:
            top, across = top + LEGEND_LINE, 0.0
        stroke: Attributes = {"class": "line", "d": f"M{across:g} {top + 6:g}h18", "style": f"--c:{colour}"}
        parts += [element("path", stroke), label(name, across + 23, top + 10)]
        across += room
    top += LEGEND_LINE if panel.legend else 0.0
    parts.append(element("g", {"transform": f"translate(0 {top:g})"}, inside))
    return element("g", {}, parts), top + float(found[1])


def _plain(svg: str) -> str:
    """Custom properties replaced by colours."""
    svg = _MIX.sub(lambda found: _mixed(COLOURS[found[1]], COLOURS[found[3]], float(found[2]) / 100), svg)
    return _VARIABLE.sub(lambda found: COLOURS[found[1]], svg).replace("--c:", "color:")


def _mixed(first: str, second: str, share: float) -> str:
    """A colour between two, `share` of the first; in sRGB, which is near enough for a legend."""
    pairs = ((int(first[at : at + 2], 16), int(second[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)
