"""Axes of a chart: scales, round ticks, and the SVG frame around the marks. Draws no data.

Every chart is 440 units wide, so that its text is still readable on a phone 360 pixels wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdcache.html.markup import Attributes, Child, Html, element

WIDTH = 440
LINE_HEIGHT = 16
LETTER = 6.6  # mean width of a letter at 12 px in the fonts named in the style sheet


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis.

    Attributes:
        title: with the unit in brackets.
        low, high: ends of the scale; for a logarithmic one both are positive.
        log: logarithmic.
        ticks: where to put labels; None finds round numbers.
        label: text of a tick.
        whole: only whole numbers are marked, and the low end always is (epochs, classes).
    """

    title: str
    low: float
    high: float
    log: bool = False
    ticks: Sequence[float] | None = None
    label: Callable[[float], str] = lambda value: short(value)
    whole: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, from 0 at `low` to 1 at `high`; values outside are moved to the end."""
        low, high, here = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, here = math.log(low), math.log(high), math.log(here)
        return (here - low) / (high - low) if high > low else 0.5

    def marks(self) -> list[float]:
        """The ticks inside the scale."""
        found = self.ticks
        if found is None:
            found = log_ticks(self.low, self.high) if self.log else round_ticks(self.low, self.high)
        if self.whole:
            step = found[1] - found[0] if len(found) > 1 else 1
            found = [self.low, *(value for value in found if value == round(value) and value > self.low + step / 3)]
        edge = 1e-9 * (self.high - self.low)
        return [value for value in found if self.low - edge <= value <= self.high + edge]


def percent(value: float) -> str:
    """0.5 -> "50%"; small shares keep two digits."""
    shown = 100 * value
    return f"{shown:.0f}%" if abs(shown) >= 10 or abs(shown - round(shown)) < 1e-9 else f"{shown:.2g}%"


def short(value: float) -> str:
    """A number as a tick shows it: 12000 -> "12k"."""
    if value and abs(value) >= 10_000:
        exponent = 2 if abs(value) >= 1e6 else 1
        return f"{value / 1000**exponent:g}{'kM'[exponent - 1]}"
    return f"{value:.3g}"


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` multiples of 1, 2, 2.5 or 5 times a power of ten between two ends."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low] if math.isfinite(low) else []
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((power * unit for unit in (1, 2, 2.5, 5, 10) if power * unit >= raw * 0.999), 10 * power)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 times them where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    units = (1, 2, 5) if last - first <= 3 else (1,)
    step = max(1, (last - first) // 6)
    found = [unit * 10.0**power for power in range(first, last + 1, step) for unit in units]
    return [value for value in found if low * 0.999 <= value <= high * 1.001]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The area data is drawn in, between two axes.

    Attributes:
        x, y: the axes.
        left, top, right, bottom: margins in chart units.
        height: of the whole chart.
    """

    x: Axis
    y: Axis
    left: float = 46
    top: float = 30
    right: float = 18
    bottom: float = 44
    height: float = 290

    def across(self, value: float) -> float:
        """Chart units of a value on the x axis."""
        return round(self.left + self.x.place(value) * (WIDTH - self.left - self.right), 2)

    def up(self, value: float) -> float:
        """Chart units of a value on the y axis."""
        return round(self.height - self.bottom - self.y.place(value) * (self.height - self.top - self.bottom), 2)

    def draw(self, title: str, *marks: Child) -> Html:
        """The whole chart as SVG; `title` is what a screen reader says."""
        foot = self.height - self.bottom
        parts: list[Child] = []
        for value in self.y.marks():
            height = self.up(value)
            parts.append(_line("rule", self.left, height, WIDTH - self.right, height))
            parts.append(label(self.y.label(value), self.left - 7, height + 4, anchor="end"))
        for value in self.x.marks():
            here = self.across(value)
            parts.append(_line("base", here, foot, here, foot + 4))
            parts.append(label(self.x.label(value), here, foot + 17, anchor="middle"))
        parts.append(_line("base", self.left, foot, WIDTH - self.right, foot))
        middle = (self.left + WIDTH - self.right) / 2
        parts.append(label(self.x.title, middle, self.height - 6, anchor="middle", kind="axis-title"))
        parts.append(label(self.y.title, 2, 13, kind="axis-title"))  # lying: upright it is hard to read on a phone
        return picture(title, self.height, *parts, *marks)


def picture(title: str, height: float, *marks: Child) -> Html:
    """An SVG of the common width that scales with the page and takes the keyboard's focus."""
    attributes: Attributes = {
        "class": "chart",
        "viewBox": f"0 0 {WIDTH} {height:g}",
        "role": "img",
        "aria-label": f"{title}; arrow keys read the values",
        "tabindex": 0,
    }
    return element("svg", attributes, marks)


def label(words: str, x: float, y: float, *, anchor: str = "start", kind: str = "") -> Html:
    """Text in a chart; `kind` is its class in the style sheet."""
    place: Attributes = {"x": round(x, 2), "y": round(y, 2), "text-anchor": anchor, "class": kind or None}
    return element("text", place, words)


def clipped(words: str, units: float) -> str:
    """Text cut to a width in chart units, with an ellipsis."""
    most = max(2, int(units / LETTER))
    return words if len(words) <= most else words[: most - 1] + "…"


def colour_of(number: int) -> str:
    """The colour of the i-th of several things that have no order."""
    return f"var(--c{number % 8})"


def ordered_colour(number: int, count: int) -> str:
    """The colour of the i-th of `count` things in order, from cold to warm."""
    share = 0 if count < 2 else round(100 * number / (count - 1))
    return f"color-mix(in oklch, var(--warm) {share}%, var(--cold))"


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Html:
    return element("line", {"class": kind, "x1": x1, "y1": y1, "x2": x2, "y2": y2})
