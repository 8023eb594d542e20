"""Grids on a real local Dask cluster: workers, scheduler and client are killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kdcache.errors import RemoteError
from kdcache.parallel import run_cells
from tests.faults.grid_process import cell, fail, traces
from tests.faults.test_dask_dump import Cluster
from tests.faults.test_grid_faults import start_grid, wait_for_runs

pytest.importorskip("distributed", reason="the extra dask is not installed")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster with one worker of one thread."""
    with ExitStack() as stack:
        cluster = Cluster(tmp_path, stack)
        cluster.add_worker()
        yield cluster


def test_a_killed_worker_loses_only_its_cell_and_needs_are_kept(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "grid"
    grid = start_grid(folder, "1", cluster.address)
    wait_for_runs(grid, folder, 3)
    lost, process = traces(folder)[2]
    assert process == cluster.workers[0].pid, "a cell did not run on the worker"
    os.kill(process, signal.SIGKILL)
    cluster.add_worker()
    wait_for_runs(grid, folder, 4)
    (folder / "gate").touch()
    out, err = grid.communicate(timeout=120)
    assert grid.returncode == 0, err
    assert "7 cells: 7 finished, 0 failed, 0 not run" in out
    assert "was lost; what it ran goes to another one" in err
    runs = [name for name, _ in traces(folder)]
    assert sorted(runs) == sorted(["0", "1", "2", "3", "4", "5", "sum", lost])
    assert runs[-1] == "sum"


@pytest.mark.slow
def test_a_lost_scheduler_is_one_error_and_the_same_command_continues(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "grid"
    grid = start_grid(folder, "1", cluster.address)
    wait_for_runs(grid, folder, 3)
    cluster.scheduler.kill()
    _, err = grid.communicate(timeout=120)
    assert grid.returncode == 5
    assert "the Dask scheduler was lost; finished cells are kept" in err
    assert "Traceback" not in err
    begun = len(traces(folder))
    (folder / "gate").touch()
    out, err = start_grid(folder, "1").communicate(timeout=120)
    assert "7 finished (2 of them before)" in out or "7 finished (3 of them before)" in out, err
    assert {name for name, _ in traces(folder)[begun:]} >= {"3", "4", "5", "sum"}


@pytest.mark.slow
def test_a_killed_client_is_continued_on_the_same_cluster_and_no_cell_runs_twice_at_once(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / "grid"
    cluster.add_worker()
    grid = start_grid(folder, "1", cluster.address)
    wait_for_runs(grid, folder, 4)
    grid.send_signal(signal.SIGKILL)
    grid.communicate()
    again = start_grid(folder, "1", cluster.address)
    (folder / "gate").touch()
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert "7 cells: 7 finished (" in out
    runs = [name for name, _ in traces(folder)]
    assert sorted(runs) == ["0", "1", "2", "3", "4", "5", "sum"], "what the killed client had begun was run again"


def test_a_failure_on_the_cluster_has_its_traceback_here(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "grid"
    folder.mkdir()
    result = run_cells([cell(folder, "bad", fail), cell(folder, "good", x=3)], folder=folder, dask=cluster.address)
    failure = result.failed["bad"]
    assert failure.message == "ValueError: no luck with bad"
    assert failure.traceback is not None
    assert "in fail" in failure.traceback.read_text()
    assert result.results["good"]["square"] == 9


def test_a_scheduler_that_does_not_answer_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdcache.parallel.dask_cluster.CONNECT_SECONDS", 1)
    with pytest.raises(RemoteError, match="no Dask scheduler answers"):
        run_cells([cell(tmp_path, "a")], folder=tmp_path, dask="tcp://127.0.0.1:1")
