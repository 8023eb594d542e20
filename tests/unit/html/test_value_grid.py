"""Heat maps of few cells: the colour follows the value, every value is readable, nothing known is left out."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from kdcache.html.standalone import Panel, svg_file
from kdcache.html.value_grid import value_grid


def _grounds(chart: str) -> list[str]:
    return re.findall(r'style="fill:(#[0-9a-f]{6})" data-tip', chart)


def _grid(values: list[list[float]], **more: object) -> str:
    rows, columns = [str(i) for i in range(len(values))], [str(i) for i in range(len(values[0]))]
    return value_grid("x", rows, columns, values, row_title="rows", column_title="columns", **more)  # type: ignore[arg-type]


def test_larger_values_are_darker_whatever_their_scale() -> None:
    for factor in (1.0, -1.0, 1e-6):
        values = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
        grounds = _grounds(_grid([[factor * value for value in line] for line in values]))
        light = [sum(int(ground[i : i + 2], 16) for i in (1, 3, 5)) for ground in grounds]
        assert light == sorted(light, reverse=factor > 0)
        assert len(set(light)) == 6


def test_ink_stands_out_on_every_ground() -> None:
    chart = _grid([list(np.linspace(0, 1, 9))])
    inks = re.findall(r'text-anchor="middle" style="fill:(#[0-9a-f]{6})"', chart)
    for ground, ink in zip(_grounds(chart), inks, strict=True):
        first, second = (_luminance(colour) for colour in (ground, ink))
        assert (max(first, second) + 0.05) / (min(first, second) + 0.05) >= 4.5, (ground, ink)


def test_missing_cells_stay_empty_and_equal_ones_are_drawn() -> None:
    assert len(_grounds(_grid([[1.0, math.nan], [math.nan, math.nan]]))) == 1
    assert len(set(_grounds(_grid([[2.0, 2.0]])))) == 1
    assert not _grounds(_grid([[math.nan]]))


@pytest.mark.parametrize("marked", [[], [(0, 1)], [(0, 0), (0, 1)]])
def test_marked_cells_have_a_frame(marked: list[tuple[int, int]]) -> None:
    assert _grid([[1.0, 2.0]], marked=marked).count("fill:none") == len(marked)


def test_the_rows_title_stands_above_the_rows_not_among_the_columns() -> None:
    places = re.findall(r'y="([0-9.]+)"[^>]*>(rows|columns|0)<', _grid([[1.0], [2.0]]))
    height = {words: float(y) for y, words in reversed(places)}
    assert height["rows"] < height["0"] < height["columns"]


def test_a_grid_goes_into_a_file_of_its_own() -> None:
    document = svg_file(
        [Panel(title="a & b", chart=value_grid("x", ["<r>"], ["c"], [[1.5]], row_title="r", column_title="c"))]
    )
    assert "1.5" in document
    assert "&lt;r&gt;" in document
    assert "data-tip" not in document


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
