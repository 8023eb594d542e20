"""Charts are well-formed SVG whose marks stand where the data says, with a label, tooltips and a table."""

from __future__ import annotations

import base64
import io
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from kdcache.html.axes import WIDTH, Axis, percent
from kdcache.html.bars import Bar, Interval, bar_chart, interval_chart
from kdcache.html.charts import Series, histogram, line_chart, numbers_of, reliability
from kdcache.html.heatmap import heat_map, png_data

SHARE = Axis(title="share", low=0, high=1, label=percent)


def _svg(source: str) -> ET.Element:
    found = re.search(r'<svg class="chart".*</svg>', source, flags=re.DOTALL)
    assert found is not None
    return ET.fromstring(found.group())


def _points(path: ET.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([-\d.e]+) ([-\d.e]+)", path.get("d") or "")]


def test_a_line_is_where_its_numbers_are() -> None:
    series = Series(
        name="a<b", points=[(1, 0.0), (2, 0.5), (3, 1.0)], colour="red", band=[(1, 0.0, 0.2), (3, 0.9, 1.0)]
    )
    svg = _svg(line_chart("title", Axis(title="x", low=1, high=3), SHARE, [series]))
    line = next(item for item in svg.iter("path") if item.get("class") == "line")
    (x1, y1), (x2, y2), (x3, y3) = _points(line)
    assert x1 < x2 < x3 <= WIDTH
    assert y1 > y2 > y3 >= 0
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.02)
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.02)
    tips = [item.get("data-tip") for item in svg.iter("rect")]
    assert tips == ["x: 1\na<b: 0", "x: 2\na<b: 0.5", "x: 3\na<b: 1"]
    assert svg.get("role") == "img"
    assert svg.get("aria-label", "").startswith("title")
    assert svg.get("tabindex") == "0"


def test_a_guess_goes_on_from_the_line_and_says_about() -> None:
    series = Series(name="s", points=[(1, 0.2), (2, 0.4)], colour="red", guess=[(4, 0.8)])
    svg = _svg(line_chart("t", Axis(title="k", low=1, high=4), SHARE, [series]))
    solid, dotted = list(svg.iter("path"))
    assert _points(dotted)[0] == _points(solid)[-1]
    assert [item.get("data-tip") for item in svg.iter("rect")][-1] == "k: 4\ns: about 0.8"


def test_several_lines_have_a_legend_and_a_table_of_all_numbers() -> None:
    lines = [Series(name=name, points=[(x, y)], colour="red") for name, x, y in (("a", 1, 0.1), ("b", 2, 0.2))]
    assert "legend" in line_chart("t", Axis(title="x", low=1, high=2), SHARE, lines)
    assert "legend" not in line_chart("t", Axis(title="x", low=1, high=2), SHARE, lines[:1])
    shown = numbers_of("x", lines, caption="numbers")
    assert re.findall(r"<td[^>]*>([^<]*)</td>", shown) == ["1", "0.1", "", "2", "", "0.2"]


def test_bars_of_a_histogram_grow_with_their_counts() -> None:
    edges, values = [0, 0.5, 0.75, 1.0], [0.0, 1.0, 0.5]
    svg = _svg(histogram("t", SHARE, SHARE, edges, values, ["none", "all", "half"]))
    bars = [item for item in svg.iter("rect") if item.get("class") == "bar"]
    heights = [float(bar.get("height") or 0) for bar in bars]
    assert len(bars) == 2  # an empty bin has no bar, but a tooltip
    assert heights[0] == pytest.approx(2 * heights[1], rel=0.01)
    assert [item.get("data-tip") for item in svg.iter("rect") if item.get("class") == "hit"] == ["none", "all", "half"]


def test_reliability_draws_no_line_through_bins_of_a_few_rows() -> None:
    bins = [(0.1, 1.0, 2), (0.5, 0.5, 100), (0.9, 0.8, 100), (0.0, 0.0, 0)]
    svg = _svg(reliability("t", [("student", "red", bins)]))
    line = next(item for item in svg.iter("path") if item.get("class") == "line")
    assert len(_points(line)) == 2
    assert [dot.get("class") for dot in svg.iter("circle")] == ["dot faint", "dot", "dot"]


def test_lengths_of_bars_are_in_proportion() -> None:
    svg = _svg(bar_chart("t", [Bar(name="a", parts=[(3, "red", "tip"), (1, "blue", "")], shown="4")]))
    first, second = (float(bar.get("width") or 0) for bar in svg.iter("rect"))
    assert (first + 1) == pytest.approx(3 * (second + 1), rel=0.01)


def test_bars_of_nothing_are_drawn_without_complaint() -> None:
    assert not list(_svg(bar_chart("t", [Bar(name="a", parts=[(0, "red", "tip")], shown="0")])).iter("path"))
    _svg(bar_chart("t", []))


def test_an_interval_that_leaves_the_axis_has_no_cap_there() -> None:
    line = Interval(name="kd", colour="red", values=(0.5, 0.6), mean=0.55, inner=(0.5, 0.6), outer=(0.4, 2.0), tip="x")
    svg = _svg(interval_chart("t", SHARE, [line]))
    caps = [item for item in svg.iter("line") if item.get("class") == "whisker" and item.get("x1") == item.get("x2")]
    assert len(caps) == 1
    assert len([dot for dot in svg.iter("circle") if dot.get("class") == "dot faint"]) == 2


def test_a_heat_map_can_be_read_back_from_its_data() -> None:
    values = np.array([[1.0, 0.01], [1e-9, 0.1]])
    source = heat_map(values, ["<a>", "b"], what="w", rows="r", columns="c")
    assert "<a>" not in source
    data = re.search(r'data-values="([^"]+)"', source)
    assert data is not None
    levels = np.frombuffer(base64.b64decode(data.group(1)), dtype=np.uint8).reshape(2, 2)
    assert 10 ** (-4 + 4 * float(levels[0, 1]) / 255) == pytest.approx(0.01, rel=0.02)
    assert (levels[0, 0], levels[1, 0]) == (255, 0)


def test_a_large_heat_map_is_averaged_down_to_256_cells_a_side() -> None:
    source = heat_map(np.full((1000, 1000), 0.01), [str(i) for i in range(1000)], what="w", rows="r", columns="c")
    names = re.search(r'data-names="([^"]+)"', source)
    assert names is not None
    shown = json.loads(names.group(1).replace("&quot;", '"'))
    assert len(shown) == 256
    assert shown[0] == "0 and 2 more"


def test_an_image_survives_the_data_uri() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    data = png_data(pixels).removeprefix("data:image/png;base64,")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), pixels)
