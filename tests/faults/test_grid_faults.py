"""Grids in real processes: workers and whole grids are killed, and the same command continues."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kdcache.parallel import run_cells
from tests.faults.grid_process import cell, die, environment, fail, traces
from tests.integration.distill_setup import start

Captured = pytest.CaptureFixture[str]


def start_grid(folder: Path, *words: str) -> subprocess.Popen[str]:
    """The grid of gates as a process."""
    folder.mkdir(exist_ok=True)
    return start(folder, "-m", "tests.faults.grid_process", str(folder), *words)


def wait_for_runs(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    """Until so many cells were begun."""
    deadline = time.monotonic() + 120
    while len(traces(folder)) < count and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    assert len(traces(folder)) >= count


def lives(process: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until_gone(processes: set[int]) -> None:
    """Until none of these processes runs."""
    deadline = time.monotonic() + 30
    while any(map(lives, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(lives, processes))


def test_cells_run_in_other_processes_with_a_log_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    grid = [cell(tmp_path, f"c{x}", x=x) for x in range(5)]
    grid += [cell(tmp_path, "env", environment), cell(tmp_path, "bad", fail)]
    result = run_cells(grid, folder=tmp_path, workers=2, threads=5)
    assert [result.results[f"c{x}"]["square"] for x in range(5)] == [0, 1, 4, 9, 16]
    used = {result.results[f"c{x}"]["process"] for x in range(5)}
    assert os.getpid() not in used
    assert 1 <= len(used) <= 2, "a worker runs one cell after another"
    assert result.results["env"] == {"threads": "5"}
    assert (tmp_path / "cells" / "env.log").read_text() == "said by env\n"
    assert result.failed["bad"].message == "ValueError: no luck with bad"
    assert not any(map(lives, used))


def test_a_cell_killed_once_is_tried_again_and_one_killed_twice_has_failed(tmp_path: Path, capsys: Captured) -> None:
    grid = [
        cell(tmp_path, "unlucky", die, survivor=str(tmp_path / "survivor")),
        cell(tmp_path, "doomed", die),
        cell(tmp_path, "after", needs=("unlucky",), x=3),
        cell(tmp_path, "never", needs=("doomed",), x=3),
    ]
    result = run_cells(grid, folder=tmp_path, workers=2)
    assert result.results["unlucky"] == {"survived": True}
    assert result.results["after"]["square"] == 9
    assert "died 2 times (killed by SIGKILL" in result.failed["doomed"].message
    assert result.not_run == {"never": "doomed"}
    assert sorted(name for name, _ in traces(tmp_path)) == ["3", "doomed", "doomed", "unlucky", "unlucky"]
    assert "unlucky: its process died (killed by SIGKILL" in capsys.readouterr().err


def test_a_cell_killed_while_it_reports_is_tried_again(tmp_path: Path) -> None:
    grid = [
        cell(tmp_path, "cut-off", die, survivor=str(tmp_path / "survivor"), saying='{"name": "cut-off", "resu'),
        cell(tmp_path, "other", x=3),
    ]
    result = run_cells(grid, folder=tmp_path, workers=2)
    assert result.results["cut-off"] == {"survived": True}
    assert result.results["other"]["square"] == 9


def test_a_killed_worker_loses_only_its_cell(tmp_path: Path) -> None:
    grid = start_grid(tmp_path, "2")
    wait_for_runs(grid, tmp_path, 4)
    name, process = next(run for run in traces(tmp_path) if int(run[0]) >= 2)  # it waits for the gate
    os.kill(process, signal.SIGKILL)
    wait_for_runs(grid, tmp_path, 5)
    (tmp_path / "gate").touch()
    out, err = grid.communicate(timeout=120)
    assert grid.returncode == 0, err
    assert "7 cells: 7 finished, 0 failed, 0 not run" in out
    runs = [name for name, _ in traces(tmp_path)]
    assert sorted(runs) == sorted(["0", "1", "2", "3", "4", "5", "sum", name])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_grid_takes_its_workers_along_and_continues(tmp_path: Path, workers: str) -> None:
    grid = start_grid(tmp_path, workers)
    wait_for_runs(grid, tmp_path, 2 + int(workers))
    grid.send_signal(signal.SIGKILL)
    grid.communicate()
    begun = traces(tmp_path)
    wait_until_gone({process for _, process in begun})
    (tmp_path / "gate").touch()
    again = start_grid(tmp_path, workers)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert "7 cells: 7 finished (2 of them before)" in out
    later = [name for name, _ in traces(tmp_path)[len(begun) :]]
    assert sorted(later) == ["2", "3", "4", "5", "sum"]


def test_ctrl_c_keeps_what_is_finished_and_leaves_no_process(tmp_path: Path) -> None:
    grid = start_grid(tmp_path, "2")
    wait_for_runs(grid, tmp_path, 4)
    grid.send_signal(signal.SIGINT)
    _, err = grid.communicate(timeout=60)
    assert grid.returncode == 130
    assert "interrupted: 2 of 7 cells are finished and kept" in err
    assert "next: the same command continues" in err
    assert "Traceback" not in err
    assert not any(lives(process) for _, process in traces(tmp_path))
    (tmp_path / "gate").touch()
    out, err = start_grid(tmp_path, "1").communicate(timeout=120)
    assert "7 finished (2 of them before)" in out, err


def test_a_second_sitting_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    first = start_grid(tmp_path, "1")
    wait_for_runs(first, tmp_path, 3)
    second = start_grid(tmp_path, "1")
    _, err = second.communicate(timeout=60)
    assert second.returncode == 6
    assert f"is being run by process {first.pid}" in err
    (tmp_path / "gate").touch()
    out, err = first.communicate(timeout=60)
    assert "7 finished" in out, err
    assert len(traces(tmp_path)) == 7


def test_what_a_cell_started_ends_with_the_grid(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from tests.faults.grid_process import cell, run_cells, start_a_child;"
        "here = Path.cwd(); cells = [cell(here, name, start_a_child, child=name) for name in ('one', 'two')];"
        "run_cells(cells, folder=here, workers=2)"
    )
    process = start(tmp_path, "-c", program)
    numbers = [tmp_path / "one", tmp_path / "two"]
    deadline = time.monotonic() + 60
    while not all(path.exists() and path.read_text() for path in numbers) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    wait_until_gone({int(path.read_text()) for path in numbers})
