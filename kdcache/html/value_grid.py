"""A grid of numbers over two axes of few steps: a heat map whose cells say their value. Inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from kdcache.html.axes import WIDTH, label, picture, short
from kdcache.html.heatmap import palette
from kdcache.html.markup import Attributes, Child, Html, element

CELL = 40.0
LEFT, TOP, RIGHT = 64.0, 22.0, 10.0
LIGHT = 184  # of 255: on a darker ground white is easier to read than black (contrast 4.5 at least)
PALEST, DARKEST = 20, 235  # the ends of the ramp would be the page's white and a black number's ground


def value_grid(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    row_title: str,
    column_title: str,
    show: Callable[[float], str] = short,
    marked: Collection[tuple[int, int]] = (),
) -> Html:
    """A cell for every value, the darker the larger.

    Args:
        title: what a cell is, for screen readers.
        rows, columns: names of the steps.
        values: one sequence for each row; NaN leaves a cell empty.
        row_title, column_title: of the axes.
        show: a value as its cell says it.
        marked: (row, column) of cells that get a frame.
    """
    known = [value for line in values for value in line if not math.isnan(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    width = (WIDTH - LEFT - RIGHT) / len(columns)
    marks: list[Child] = []
    for number, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = TOP + number * CELL
        marks.append(label(name, LEFT - 8, y + CELL / 2 + 4, anchor="end"))
        for place, value in enumerate(line):
            if not math.isnan(value):
                tip = f"{row_title} {name}, {column_title} {columns[place]}\n{title}: {show(value)}"
                box = (LEFT + place * width, y, width)
                marks.append(_cell(box, _level(value, low, high), show(value), tip))
    for number, place in marked:
        frame: Attributes = {
            **_box(LEFT + place * width + 2, TOP + number * CELL + 2, width - 4, CELL - 4),
            "style": "fill:none;stroke:#e2711d;stroke-width:2.5",
        }
        marks.append(element("rect", frame))
    foot = TOP + len(rows) * CELL
    for place, name in enumerate(columns):
        marks.append(label(name, LEFT + (place + 0.5) * width, foot + 17, anchor="middle"))
    marks.append(label(column_title, LEFT + (WIDTH - LEFT - RIGHT) / 2, foot + 35, anchor="middle", kind="axis-title"))
    marks.append(label(row_title, 2, 13, kind="axis-title"))  # above its steps, as in every chart
    return picture(title, foot + 42, marks)


def _cell(box: tuple[float, float, float], level: int, words: str, tip: str) -> Html:
    x, y, width = box
    red, green, blue = (int(part) for part in palette()[level])
    ground: Attributes = {
        **_box(x + 1, y + 1, width - 2, CELL - 2),
        "rx": 3,
        "style": f"fill:#{red:02x}{green:02x}{blue:02x}",
        "data-tip": tip,
    }
    ink: Attributes = {
        "x": round(x + width / 2, 2),
        "y": round(y + CELL / 2 + 4, 2),
        "text-anchor": "middle",
        "style": f"fill:{'#ffffff' if level > LIGHT else '#000000'}",
    }
    return element("g", {}, element("rect", ground), element("text", ink, words))


def _box(x: float, y: float, width: float, height: float) -> dict[str, float]:
    return {"x": round(x, 2), "y": round(y, 2), "width": round(width, 2), "height": round(height, 2)}


def _level(value: float, low: float, high: float) -> int:
    """A step of the palette."""
    share = (value - low) / (high - low) if high > low else 0.5
    return round(PALEST + share * (DARKEST - PALEST))
