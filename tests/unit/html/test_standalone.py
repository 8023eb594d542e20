"""Charts as SVG files: well-formed, complete without a page, and the same for the same data."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from kdcache.errors import ConfigError
from kdcache.html.axes import WIDTH, Axis, colour_of, ordered_colour
from kdcache.html.bars import Interval, interval_chart
from kdcache.html.charts import Series, line_chart
from kdcache.html.markup import Html
from kdcache.html.standalone import COLOURS, Panel, matrix, svg_file

AXIS = Axis(title="gain [points]", low=-2, high=4)


def _panels() -> list[Panel]:
    lines = [
        Series(name=name, points=[(1, 0.5), (2, value)], colour=ordered_colour(i, 3), dots=True)
        for i, (name, value) in enumerate((("kd & co", 1.0), ("ls", 2.0), ("ce", 3.0)))
    ]
    intervals = [
        Interval(name="kd <1>", colour=colour_of(2), values=[1, 2], mean=1.5, inner=(1, 2), outer=(0, 3), tip="a\nb")
    ]
    legend = [(line.name, line.colour) for line in lines]
    return [
        Panel(title="lines", chart=line_chart("l", AXIS, AXIS, lines), legend=legend),
        Panel(title="gains & losses", chart=interval_chart("i", AXIS, intervals, guide=0)),
        Panel(title="classes", chart=matrix("m", np.eye(4), low=0, high=1, what="r", note="groups of 2", edges=[2])),
    ]


def test_a_file_is_well_formed_and_needs_no_page() -> None:
    text = svg_file(_panels(), columns=2)
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = "".join(root.itertext())
    assert all(title in words for title in ("lines", "gains & losses", "classes", "kd & co", "kd <1>"))
    assert not re.search(r"var\(|color-mix|data-tip|tabindex|class=\"hit\"|<script", text)
    assert set(re.findall(r"color:(#\w+)", text)) >= {COLOURS["--c2"], COLOURS["--cold"], COLOURS["--warm"]}
    assert text == svg_file(_panels(), columns=2)


def test_legends_leave_room_for_wide_letters() -> None:
    names = ["main", "smoothed", "sure", "a-longer-name", "kd-topk-25"]
    chart = line_chart(
        "l", AXIS, AXIS, [Series(name=name, points=[(1, 0), (2, 1)], colour="#000000") for name in names]
    )
    root = ElementTree.fromstring(
        svg_file([Panel(title="t", chart=chart, legend=[(name, "#000000") for name in names])])
    )
    texts = {
        text.text: (float(text.attrib["x"]), float(text.attrib["y"])) for text in root.iter() if text.text in names
    }
    for name, (x, y) in texts.items():
        end = x + 7.2 * len(name)  # DejaVu Sans, the widest of the fonts named
        assert all(other - 23 > end for other, line in texts.values() if line == y and other > x)
        assert end < WIDTH + 24


def test_panels_fill_rows_and_stay_inside_the_file() -> None:
    root = ElementTree.fromstring(svg_file(_panels(), columns=2))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    shifts = [group.attrib["transform"] for group in root if "transform" in group.attrib]
    places = [tuple(map(float, re.findall(r"[\d.]+", shift))) for shift in shifts]
    assert len(places) == 3
    assert places[0][1] == places[1][1] < places[2][1] < height
    assert places[0][0] == places[2][0]
    assert places[1][0] + WIDTH < width


def test_a_matrix_shows_its_values_as_colours_between_the_ends() -> None:
    values = np.array([[-1.0, 0.5], [1.0, 7.0]])
    found = re.search(r'href="data:image/png;base64,([^"]+)"', matrix("m", values, low=0, high=1))
    assert found is not None
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB"))
    assert pixels.shape == (2, 2, 3)
    assert pixels[0, 0].tolist() == [255, 255, 255], "below the scale is its low end"
    assert pixels[1, 0].tolist() == pixels[1, 1].tolist() == [11, 31, 75]
    assert pixels[1, 0].sum() < pixels[0, 1].sum() < pixels[0, 0].sum()


def test_what_is_no_chart_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        svg_file([])
    with pytest.raises(ConfigError, match="no chart"):
        svg_file([Panel(title="words", chart=Html("<p>words</p>"))])
