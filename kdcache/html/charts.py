"""Charts of one quantity over another: lines with bands, histograms, reliability. Inline SVG, seen without script."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kdcache.html.axes import Axis, Frame, colour_of, percent, short
from kdcache.html.markup import Attributes, Html, element, join
from kdcache.html.page import Column, table

Point = tuple[float, float]
LEAST_ROWS = 10  # the accuracy of fewer rows is a coin's: shown as a faint dot, no line leads there


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line.

    Attributes:
        name: for legend and tooltips.
        points: (x, y), x rising.
        colour: a CSS colour, for example from `colour_of`.
        guess: more points that go on from `points`, drawn dotted.
        band: (x, low, high) around the line.
        dots: mark every point.
    """

    name: str
    points: Sequence[Point]
    colour: str
    guess: Sequence[Point] = ()
    band: Sequence[tuple[float, float, float]] = ()
    dots: bool = False


def legend(entries: Sequence[tuple[str, str]]) -> Html:
    """Names beside strokes of their colours."""
    shown = []
    for name, colour in entries:
        stroke: Attributes = {
            "x1": 0,
            "x2": 24,
            "y1": 6,
            "y2": 6,
            "stroke": colour,
            "stroke-width": 3.5,
            "stroke-linecap": "round",
        }
        sample = element("svg", {"viewBox": "0 0 24 12", "aria-hidden": "true"}, element("line", stroke))
        shown.append(element("li", {}, sample, name))
    return element("ul", {"class": "legend"}, shown)


def line_chart(title: str, x: Axis, y: Axis, series: Sequence[Series], *, show: Callable[[float], str] = short) -> Html:
    """Lines over a common x axis, with a legend and one tooltip for each x.

    Args:
        title: what is shown, for screen readers.
        x: bottom axis; y: left axis.
        series: at least one line.
        show: a y value in a tooltip.
    """
    frame = Frame(x=x, y=y)
    marks = []
    for one in series:
        style = {"style": f"--c:{one.colour}"}
        drawn = [_band(frame, one)] if one.band else []
        drawn.append(element("path", {"class": "line", "d": _path(frame, one.points)}))
        if one.guess:
            drawn.append(element("path", {"class": "line dashed", "d": _path(frame, [*one.points[-1:], *one.guess])}))
        if one.dots:
            drawn += [
                element("circle", {"class": "dot", "cx": frame.across(a), "cy": frame.up(b), "r": 3.2})
                for a, b in one.points
            ]
        marks.append(element("g", style, drawn))
    chart = frame.draw(title, marks, _columns(frame, series, show))
    entries = legend([(one.name, one.colour) for one in series]) if len(series) > 1 else None
    return join([entries, chart])


def numbers_of(x_title: str, series: Sequence[Series], *, caption: str, show: Callable[[float], str] = short) -> Html:
    """The table behind a line chart."""
    places = sorted({point[0] for one in series for point in (*one.points, *one.guess)})
    known = [dict((*one.guess, *one.points)) for one in series]
    rows = [[short(place), *(show(values[place]) if place in values else "" for values in known)] for place in places]
    columns = [Column(title=x_title, numeric=True), *(Column(title=one.name, numeric=True) for one in series)]
    return table(columns, rows, caption=caption)


def histogram(
    title: str, x: Axis, y: Axis, edges: Sequence[float], values: Sequence[float], tips: Sequence[str]
) -> Html:
    """Bars between edges.

    Args:
        title: for screen readers.
        x, y: axes; y begins at 0.
        edges: n + 1 rising edges.
        values: n heights.
        tips: n tooltips.
    """
    frame = Frame(x=x, y=y)
    foot, marks = frame.up(0), []
    for low, high, value, tip in zip(edges, edges[1:], values, tips, strict=False):
        left, right, top = frame.across(low) + 1, frame.across(high) - 1, frame.up(value)
        if value > 0:  # a count of one in a million is still a pixel high
            top = min(top, foot - 1)
            bar = {"x": left, "y": top, "width": round(right - left, 2), "height": round(foot - top, 2), "rx": 2}
            marks.append(element("rect", {"class": "bar", **bar}))
        marks.append(_hit(left - 1, frame.top, right - left + 2, foot - frame.top, tip))
    return frame.draw(title, element("g", {"style": f"--c:{colour_of(0)}"}, marks))


def reliability(title: str, groups: Sequence[tuple[str, str, Sequence[tuple[float, float, int]]]]) -> Html:
    """Accuracy against confidence; on the diagonal a model is as right as it is sure.

    Args:
        title: for screen readers.
        groups: (name, colour, bins) with bins of (mean confidence, accuracy, rows); empty bins are left out.
    """
    x = Axis(title="confidence", low=0.0, high=1.0, label=percent)
    y = replace(x, title="share that is right")
    frame = Frame(x=x, y=y)
    ends = {"x1": frame.across(0), "y1": frame.up(0), "x2": frame.across(1), "y2": frame.up(1)}
    marks = [element("line", {"class": "guide", **ends})]
    for name, colour, bins in groups:
        filled = [item for item in bins if item[2]]
        most = max((rows for _, _, rows in filled), default=1)
        enough = max(LEAST_ROWS, sum(rows for _, _, rows in filled) / 1000)
        solid = [(sure, right) for sure, right, rows in filled if rows >= enough]
        drawn = [element("path", {"class": "line", "d": _path(frame, solid)})]
        for sure, right, rows in filled:
            tip = f"{name}\nsure {percent(sure)}, right {percent(right)}\n{rows:,} rows"
            radius = round(2.5 + 6 * (rows / most) ** 0.5, 2)
            place = {"cx": frame.across(sure), "cy": frame.up(right), "r": radius, "data-tip": tip}
            drawn.append(element("circle", {"class": "dot" if rows >= enough else "dot faint", **place}))
        marks.append(element("g", {"style": f"--c:{colour}"}, drawn))
    entries = legend([(name, colour) for name, colour, _ in groups]) if len(groups) > 1 else None
    return join([entries, frame.draw(title, marks)])


def _path(frame: Frame, points: Sequence[Point]) -> str:
    return "".join(f"{'L' if i else 'M'}{frame.across(x):g} {frame.up(y):g}" for i, (x, y) in enumerate(points))


def _band(frame: Frame, one: Series) -> Html:
    there = [(x, high) for x, _, high in one.band]
    back = [(x, low) for x, low, _ in reversed(one.band)]
    return element("path", {"class": "band", "d": _path(frame, [*there, *back]) + "Z"})


def _columns(frame: Frame, series: Sequence[Series], show: Callable[[float], str]) -> list[Html]:
    """Invisible columns, one for each x, that carry the tooltips."""
    places = sorted({point[0] for one in series for point in (*one.points, *one.guess)})
    across = [frame.across(place) for place in places]
    marks = []
    for i, place in enumerate(places):
        left = (across[i - 1] + across[i]) / 2 if i else frame.left - 4
        right = (across[i] + across[i + 1]) / 2 if i + 1 < len(places) else across[i] + 6
        lines = [f"{frame.x.title}: {short(place)}"]
        for one in series:
            value, guessed = _at(one, place)
            if value is not None:
                lines.append(f"{one.name}: {'about ' if guessed else ''}{show(value)}")
        marks.append(_hit(left, frame.top, right - left, frame.height - frame.bottom - frame.top, "\n".join(lines)))
    return marks


def _at(one: Series, place: float) -> tuple[float | None, bool]:
    for points, guessed in ((one.points, False), (one.guess, True)):
        i = bisect.bisect_left(points, place, key=lambda point: point[0])
        if i < len(points) and points[i][0] == place:
            return points[i][1], guessed
    return None, False


def _hit(x: float, y: float, width: float, height: float, tip: str) -> Html:
    box = {"x": round(x, 2), "y": y, "width": round(width, 2), "height": round(height, 2)}
    return element("rect", {"class": "hit", **box, "data-tip": tip})
