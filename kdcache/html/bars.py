"""Charts with one named line each: horizontal bars, and means with their intervals. Inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdcache.html.axes import LETTER, LINE_HEIGHT, WIDTH, Axis, clipped, label, picture
from kdcache.html.markup import Child, Html, element

ROW = 30.0
NAMES = 150.0  # the most a name may take of the width


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One line of a bar chart: parts of (value, colour, tooltip) one after the other, and the text at its end."""

    name: str
    parts: Sequence[tuple[float, str, str]]
    shown: str


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One line of an interval chart.

    Attributes:
        name: of the line.
        colour: CSS colour.
        values: single results, drawn faint.
        mean: large dot.
        inner: thick line, for example mean and standard deviation; None leaves it out.
        outer: thin line with ends, for example a 95 % interval; None leaves it out.
        tip: tooltip.
    """

    name: str
    colour: str
    values: Sequence[float]
    mean: float
    inner: tuple[float, float] | None
    outer: tuple[float, float] | None
    tip: str


def bar_chart(title: str, bars: Sequence[Bar]) -> Html:
    """Horizontal bars from a common zero, each with its name and its value written beside it.

    Args:
        title: what is shown and in which unit, for screen readers.
        bars: in order, from the top.
    """
    left = _names_width([bar.name for bar in bars])
    ends = max((len(bar.shown) for bar in bars), default=0) * LETTER + 12
    most = max((sum(part[0] for part in bar.parts) for bar in bars), default=0) or 1.0
    scale = (WIDTH - left - ends) / most
    marks: list[Child] = []
    for number, bar in enumerate(bars):
        y = 6 + number * (ROW - 6)
        marks.append(label(clipped(bar.name, left - 8), left - 8, y + 13, anchor="end", kind="name"))
        x = left
        for value, colour, tip in bar.parts:
            width = max(value * scale, 0.75 if value > 0 else 0)
            box = {"x": round(x, 2), "y": y, "width": round(max(width - 1, 0.5), 2), "height": 17, "rx": 2.5}
            marks.append(element("rect", {"class": "bar", "style": f"--c:{colour}", **box, "data-tip": tip}))
            x += width
        marks.append(label(bar.shown, x + 6, y + 13, kind="value"))
    return picture(title, 10 + len(bars) * (ROW - 6), marks)


def interval_chart(
    title: str, axis: Axis, lines: Sequence[Interval], *, guide: float | None = None, wide_names: bool = True
) -> Html:
    """Means with intervals on a common axis.

    Args:
        title: for screen readers.
        axis: of the values, at the bottom.
        lines: in order, from the top.
        guide: a value marked by a dashed line, for example 0 for a gain.
        wide_names: False where the names are short.
    """
    left = _names_width([line.name for line in lines]) if wide_names else 60
    top, foot = 8.0, 8 + len(lines) * ROW

    def at(value: float) -> float:
        return round(left + 6 + axis.place(value) * (WIDTH - left - 22), 2)

    marks: list[Child] = []
    for value in axis.marks():
        marks.append(element("line", {"class": "rule", "x1": at(value), "x2": at(value), "y1": top, "y2": foot}))
        marks.append(label(axis.label(value), at(value), foot + LINE_HEIGHT, anchor="middle"))
    if guide is not None:
        marks.append(element("line", {"class": "guide", "x1": at(guide), "x2": at(guide), "y1": top, "y2": foot}))
    for number, line in enumerate(lines):
        y = top + (number + 0.5) * ROW
        marks.append(label(clipped(line.name, left - 8), left - 8, y + 4, anchor="end", kind="name"))
        marks.append(element("g", {"style": f"--c:{line.colour}"}, _interval(line, axis, at, y, left)))
    marks.append(label(axis.title, (left + WIDTH) / 2, foot + 36, anchor="middle", kind="axis-title"))
    return picture(title, foot + 44, marks)


def _interval(line: Interval, axis: Axis, at: Callable[[float], float], y: float, left: float) -> list[Html]:
    drawn = []
    if line.inner is not None:
        low, high = map(at, line.inner)
        drawn.append(element("line", {"class": "whisker thick", "x1": low, "x2": high, "y1": y, "y2": y}))
    if line.outer is not None:
        low, high = map(at, line.outer)
        drawn.append(element("line", {"class": "whisker", "x1": low, "x2": high, "y1": y, "y2": y}))
        drawn += [  # an end outside the axis has no cap: the line goes on
            element("line", {"class": "whisker", "x1": at(end), "x2": at(end), "y1": y - 4, "y2": y + 4})
            for end in line.outer
            if axis.low <= end <= axis.high
        ]
    if len(line.values) > 1:
        drawn += [element("circle", {"class": "dot faint", "cx": at(v), "cy": y, "r": 2.6}) for v in line.values]
    drawn.append(element("circle", {"class": "dot", "cx": at(line.mean), "cy": y, "r": 5.2}))
    box = {"x": left, "y": y - ROW / 2, "width": WIDTH - left, "height": ROW}
    drawn.append(element("rect", {"class": "hit", **box, "data-tip": line.tip}))
    return drawn


def _names_width(names: Sequence[str]) -> float:
    return min(NAMES, max((len(name) for name in names), default=4) * LETTER + 14)
