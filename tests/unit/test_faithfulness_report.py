"""The study's table: pairs by seed, intervals, and honest gaps where a cell is missing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faithfulness_report import difference, interval, plot, tables

PLAN = {
    "grid": {"seeds": [0, 1, 2]},
    "views": {"count": 30},
    "arms": [{"name": "live"}, {"name": "store"}, {"name": "views-1", "views": 1}, {"name": "ce"}],
}


def _cell(accuracy: float) -> dict[str, Any]:
    figures = {"accuracy": accuracy, "nll": 1.0, "ece": 0.1, "train_accuracy": 0.7, "seconds": 100.0}
    return {"figures": figures, "settings": {"lr": 0.3}}


CELLS = {
    **{f"live-seed{seed}": _cell(value) for seed, value in enumerate((0.60, 0.62, 0.64))},
    **{f"store-seed{seed}": _cell(value) for seed, value in enumerate((0.61, 0.62, 0.66))},
    "views-1-seed0": _cell(0.55),
}


def test_an_interval_is_students_t() -> None:
    mean, half = interval([1.0, 0.0, 2.0])
    assert mean == 1.0
    assert half == pytest.approx(4.303 / math.sqrt(3), rel=1e-4)
    assert math.isnan(interval([1.0])[1])


def test_differences_are_paired_by_seed() -> None:
    """+1, 0 and +2 points: mean 1, standard deviation 1; unpaired the spread would be 2.6."""
    live, store = {0: 60.0, 1: 62.0, 2: 64.0}, {0: 61.0, 1: 62.0, 2: 66.0}
    assert difference(store, live) == "+1.00 [-1.48, +3.48]"
    assert difference({2: 65.0, 7: 0.0}, live) == "+1.00"
    assert difference({7: 65.0}, live) == "-"


def test_the_table_has_a_row_for_every_arm_and_says_what_was_not_run() -> None:
    rows = tables(PLAN, CELLS).splitlines()
    assert len(rows) == 6
    assert rows[3].startswith("| store | 0.3 | 3 | 63.00 ± 2.65 | +1.00 [-1.48, +3.48] | - |")
    assert rows[4].startswith("| views-1 | 0.3 | 1 | 55.00 | -5.00 | -6.00 |")
    assert rows[5] == "| ce | - | 0 | not run | | | | | | |"


def test_the_plot_is_small_and_the_same_for_the_same_cells(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra `report`")
    for name in ("one.svg", "two.svg"):
        plot(PLAN, CELLS, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.svg").stat().st_size < 100_000


def test_gradient_rows_are_sorted_by_k_then_t_and_students_by_training() -> None:
    figures = {"k=20 T=1": {"cosine": 0.5, "relative_l2": 1.0}, "k=5 T=8": {"cosine": 1.0, "relative_l2": 0.0}}
    rows = tables(PLAN, CELLS | {"gradients": {"figures": {"final": figures, "initial": figures}}}).splitlines()
    assert rows[-4].startswith("| k, T | initial: 1 - cosine")
    assert [row.split(" |")[0] for row in rows[-2:]] == ["| k=5 T=8", "| k=20 T=1"]
