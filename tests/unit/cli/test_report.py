"""`kdcache report` on the command line: a store or runs, what goes to stdout, and wrong combinations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdcache.cli.main import run
from tests.logit_store import random_logits, write_logit_store
from tests.unit.pages.test_runs_page import _run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    logits, labels = random_logits(300, 6)
    return write_logit_store(tmp_path / "store.zarr", [logits], labels, topk=3)


def test_a_store_becomes_a_page(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "page.html"
    assert run(["report", str(store), "--html", str(file), "-q"]) == 0
    assert str(file) in capsys.readouterr().out
    assert "<!doctype html>" in file.read_text()
    assert run(["report", str(store), "--html", str(file), "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["html"] == str(file)
    assert found["stats"]["rows"] == 300


def test_runs_are_a_table_and_on_request_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    _run(runs, "kd", 0, 0.5)
    assert run(["report", str(runs)]) == 0
    assert "kd" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert run(["report", str(runs), "--html", str(tmp_path / "page.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["method"] == "kd"
    assert "<!doctype html>" in (tmp_path / "page.html").read_text()


def test_combinations_that_mean_nothing_are_usage_errors(store: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    _run(runs, "kd", 0, 0.5)
    assert run(["report", str(store), str(store)]) == 2
    assert run(["report", str(store), str(runs)]) == 2
    assert run(["report", str(runs), "--dataset", "digit-pairs"]) == 2
    assert run(["report", str(tmp_path / "missing")]) == 3
