"""A grid in this process: order, skipping, failures, and what is refused. Processes are in tests/faults."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdcache.errors import ConfigError, LockedError
from kdcache.parallel import Cell, run_cells
from kdcache.parallel.cell_files import CellFiles, sitting
from kdcache.parallel.threads import threads_each
from tests.faults.grid_process import add_up, cell, environment, fail, fail_with_hint, leave, not_json, square, traces

Captured = pytest.CaptureFixture[str]


def test_cells_run_in_their_order_with_needs_first(tmp_path: Path) -> None:
    grid = [cell(tmp_path, "sum", add_up, needs=("b",)), cell(tmp_path, "a", x=3), cell(tmp_path, "b", x=4)]
    result = run_cells(grid, folder=tmp_path)
    assert [name for name, _ in traces(tmp_path)] == ["4", "sum", "3"]
    assert result.results["sum"] == {"lines": 2}
    assert result.results["a"]["square"] == 9
    assert list(result.results) == ["b", "sum", "a"]
    assert result.exit_code == 0
    assert "3 cells: 3 finished, 0 failed, 0 not run" in result.summary()


def test_finished_cells_are_skipped_and_their_results_returned(tmp_path: Path) -> None:
    grid = [cell(tmp_path, "a", x=3), cell(tmp_path, "b", x=4)]
    first = run_cells(grid[:1], folder=tmp_path)
    second = run_cells(grid, folder=tmp_path)
    assert second.skipped == ("a",)
    assert second.results["a"] == first.results["a"]
    assert second.seconds["a"] == first.seconds["a"]
    assert len(traces(tmp_path)) == 2


def test_a_result_file_says_what_it_is_of(tmp_path: Path) -> None:
    run_cells([cell(tmp_path, "a", x=3)], folder=tmp_path)
    document = json.loads((tmp_path / "cells" / "a.json").read_text())
    assert document["arguments"] == {"x": 3, "folder": str(tmp_path)}
    assert document["result"]["square"] == 9
    assert len(document["digest"]) == 64
    assert document["seconds"] >= 0


def test_other_arguments_run_the_cell_and_those_that_need_it_again(tmp_path: Path, capsys: Captured) -> None:
    def grid(x: int) -> list[Cell]:
        return [cell(tmp_path, "a", x=x), cell(tmp_path, "other", x=9), cell(tmp_path, "sum", add_up, needs=("a",))]

    run_cells(grid(3), folder=tmp_path)
    capsys.readouterr()
    result = run_cells(grid(5), folder=tmp_path)
    err = capsys.readouterr().err
    assert result.skipped == ("other",)
    assert result.results["a"]["square"] == 25
    assert "a: its arguments changed (x 3 -> 5); it is run again and its old result removed" in err
    assert "sum: a cell it needs has other arguments now" in err


def test_a_cell_run_again_takes_along_what_was_made_of_its_old_result(tmp_path: Path, capsys: Captured) -> None:
    """A teacher whose result was removed is another teacher: a store of the old one must not pass for its own."""
    teacher, other = cell(tmp_path, "teacher", x=3), cell(tmp_path, "other", x=9)
    store = cell(tmp_path, "store", needs=("teacher",), x=4)
    grid = [teacher, other, store, cell(tmp_path, "student", needs=("store", "other"), x=5)]
    run_cells(grid, folder=tmp_path)
    (tmp_path / "cells" / "teacher.json").unlink()
    run_cells([teacher, other], folder=tmp_path)  # as a sitting that is killed before it comes to the rest
    capsys.readouterr()
    result = run_cells(grid, folder=tmp_path)
    assert result.skipped == ("teacher", "other")
    err = capsys.readouterr().err
    assert "store: it needs teacher, which was run again since; it is run again" in err
    assert "student: it needs store, which has no result; it is run again" in err
    assert run_cells(grid, folder=tmp_path).skipped == ("teacher", "other", "store", "student")


def test_results_of_before_it_was_kept_what_they_needed_are_still_skipped(tmp_path: Path) -> None:
    grid = [cell(tmp_path, "a", x=3), cell(tmp_path, "b", needs=("a",), x=4)]
    run_cells(grid, folder=tmp_path)
    for name in ("a", "b"):
        path = tmp_path / "cells" / f"{name}.json"
        document = json.loads(path.read_text())
        del document["needed"]
        path.write_text(json.dumps(document))
    assert run_cells(grid, folder=tmp_path).skipped == ("a", "b")


def test_an_old_result_does_not_outlive_a_failure_under_its_name(tmp_path: Path) -> None:
    run_cells([cell(tmp_path, "a", x=3)], folder=tmp_path)
    run_cells([cell(tmp_path, "a", fail, x=4)], folder=tmp_path)
    assert not (tmp_path / "cells" / "a.json").exists()


@pytest.mark.parametrize("content", [b"", b'{"name": "a", "dig', b"[]", b'{"name": "a"}', b"\xff\x00"])
def test_a_torn_result_counts_as_missing(tmp_path: Path, content: bytes, capsys: Captured) -> None:
    run_cells([cell(tmp_path, "a", x=3)], folder=tmp_path)
    (tmp_path / "cells" / "a.json").write_bytes(content)
    result = run_cells([cell(tmp_path, "a", x=3)], folder=tmp_path)
    assert result.skipped == ()
    assert result.results["a"]["square"] == 9
    assert "a is run again" in capsys.readouterr().err


def test_a_failure_is_reported_and_stops_only_what_needs_it(tmp_path: Path, capsys: Captured) -> None:
    grid = [
        cell(tmp_path, "bad", fail),
        cell(tmp_path, "needs-bad", needs=("bad",), x=1),
        cell(tmp_path, "far", needs=("needs-bad",), x=1),
        cell(tmp_path, "good", x=2),
    ]
    result = run_cells(grid, folder=tmp_path)
    assert list(result.results) == ["good"]
    assert result.not_run == {"needs-bad": "bad", "far": "bad"}
    failure = result.failed["bad"]
    assert failure.message == "ValueError: no luck with bad"
    assert failure.traceback is not None
    assert "in fail" in failure.traceback.read_text()
    assert result.exit_code == 1
    assert "far: need bad, which failed" in result.summary()
    assert str(failure.traceback) in result.summary()
    assert "bad FAILED: ValueError: no luck with bad" in capsys.readouterr().err


def test_a_failed_cell_is_tried_again_by_the_next_sitting(tmp_path: Path) -> None:
    run_cells([cell(tmp_path, "a", fail, x=3)], folder=tmp_path)
    result = run_cells([cell(tmp_path, "a", x=3)], folder=tmp_path)
    assert result.results["a"]["square"] == 9
    assert not (tmp_path / "cells" / "a.error.txt").exists()


@pytest.mark.parametrize(
    ("run", "message"),
    [(fail_with_hint, "no data\n  next: get some"), (leave, "SystemExit: 3"), (not_json, "expected JSON")],
)
def test_whatever_a_cell_does_becomes_its_message(tmp_path: Path, run: Any, message: str) -> None:
    result = run_cells([cell(tmp_path, "a", run), cell(tmp_path, "b", x=2)], folder=tmp_path)
    assert message in result.failed["a"].message
    assert result.results["b"]["square"] == 4


def test_arguments_arrive_as_json_in_every_mode(tmp_path: Path) -> None:
    seen: list[Any] = []
    grid = [Cell(name="a", run=_see, arguments={"pair": (1, 2)})]
    _SEEN.clear()
    run_cells(grid, folder=tmp_path)
    seen = list(_SEEN)
    assert seen == [{"pair": [1, 2]}]


_SEEN: list[Any] = []


def _see(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    _SEEN.append(arguments)
    return {}


def test_threads_are_set_while_a_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    result = run_cells([cell(tmp_path, "a", environment)], folder=tmp_path, threads=3)
    assert result.results["a"] == {"threads": "3"}
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdcache.parallel.threads.usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_each(count) for count in (1, 2, 3, 100)] == [8, 4, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert [threads_each(count) for count in (1, 2, 8)] == [2, 2, 1]


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "-flag", "a b", "a\n", "ä", "a" * 151])
def test_a_name_is_a_file_name(name: str) -> None:
    with pytest.raises(ConfigError, match="expected a name"):
        Cell(name=name, run=square, arguments={})


@pytest.mark.parametrize("arguments", [{"path": Path("x")}, {"x": float("nan")}, [1], {"f": square}])
def test_arguments_are_json(arguments: Any) -> None:
    with pytest.raises(ConfigError, match="cell a: its arguments"):
        Cell(name="a", run=square, arguments=arguments)


def test_functions_can_be_imported() -> None:
    def inner(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        return {}

    for function in (inner, lambda arguments: {}):
        with pytest.raises(ConfigError, match="top-level function"):
            Cell(name="a", run=function, arguments={})


def test_a_grid_that_cannot_be_run_is_refused_before_it_begins(tmp_path: Path) -> None:
    a, b = cell(tmp_path, "a"), cell(tmp_path, "b")
    with pytest.raises(ConfigError, match="two cells are named 'a'"):
        run_cells([a, a], folder=tmp_path)
    with pytest.raises(ConfigError, match="cell a needs 'c'"):
        run_cells([replace(a, needs=("c",))], folder=tmp_path)
    with pytest.raises(ConfigError, match=r"in a circle: (a -> b -> a|b -> a -> b)"):
        run_cells([replace(a, needs=("b",)), replace(b, needs=("a",))], folder=tmp_path)
    with pytest.raises(ConfigError, match="at least 1 worker"):
        run_cells([a], folder=tmp_path, workers=0)
    with pytest.raises(ConfigError, match="exclude each other"):
        run_cells([a], folder=tmp_path, workers=2, dask="tcp://127.0.0.1:1")
    assert not (tmp_path / "trace").exists()


def test_a_second_sitting_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with sitting(CellFiles(tmp_path)), pytest.raises(LockedError, match="is being run by process"):
        run_cells([cell(tmp_path, "a")], folder=tmp_path)
    assert run_cells([cell(tmp_path, "a", x=3)], folder=tmp_path).exit_code == 0


def test_an_empty_grid_is_fine(tmp_path: Path) -> None:
    assert run_cells([], folder=tmp_path / "new").exit_code == 0
