"""A team and its catalogue, through the command line: on a shared folder and on a real S3 API."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdcache.cli.main import run
from kdcache.store.catalog import Catalog
from kdcache.store.dump_claims import claim
from tests.integration.small_world import TEACHERS, World, make_world
from tests.remote_servers import web_server

COUNTING = '''

class Counted(Brightness):
    """`good`, which leaves a mark for every batch of rows (one or two examples may be used to look at the model)."""

    def forward(self, images):
        if len(images) > 2:
            with open(os.environ["KDCACHE_TEST_MARKS"], "a") as marks:
                marks.write("x")
        return super().forward(images)


def counted(num_classes, input_shape):
    return Counted(num_classes), scaled
'''


@dataclass(frozen=True)
class Team:
    """A small world, and the place its people share."""

    world: World
    catalog: str

    def dump(self, *more: str, out: str = "") -> list[str]:
        words = self.world.dump("counted", out=out) if out else self.world.dump("counted")[:-2]
        return [*words, "--catalog", self.catalog, *more]

    @property
    def asked(self) -> int:
        marks = self.world.folder / "asked"
        return len(marks.read_text()) if marks.exists() else 0


@pytest.fixture(params=["folder", "s3"])
def team(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Team:
    world = make_world(tmp_path / "world")
    (world.folder / "teachers.py").write_text(TEACHERS + COUNTING)
    monkeypatch.chdir(world.folder)
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KDCACHE_TEST_MARKS", str(world.folder / "asked"))
    place = str(tmp_path / "team") if request.param == "folder" else str(request.getfixturevalue("s3_url"))
    return Team(world, place)


def _json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_nobody_runs_the_same_teacher_twice(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(team.dump("--dry-run", "--json")) == 0
    assert _json(capsys)["catalog_hit"] is None
    assert run(team.dump("--json")) == 0
    first = _json(capsys)
    assert not first["reused"]
    before = team.asked
    assert before > 0
    assert first["store"].startswith(team.catalog), "a store without --out goes into the catalogue"
    (tmp_path / "colleague").mkdir()
    monkeypatch.chdir(tmp_path / "colleague")  # another person, elsewhere, asking for less
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "their-cache"))
    assert run([*team.dump("--json"), "--topk", "2"]) == 0
    second = _json(capsys)
    assert second["reused"]
    assert second["root_digest"] == first["root_digest"]
    assert run(["catalog", "find", "--catalog", team.catalog, "--key", first["store_key"]]) == 0
    assert team.asked == before, "the teacher was asked although the store is there"
    assert run(team.world.distill("--student", "mlp-8", "--out", "run", store=second["store"])) == 0
    assert (tmp_path / "colleague" / "run" / "result.json").is_file()


def test_a_store_made_elsewhere_is_added_found_shown_and_removed(
    team: Team, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(team.world.dump(out="mine.zarr")) == 0
    place = ["--catalog", team.catalog]
    capsys.readouterr()
    nothing = 1 if "://" in team.catalog else 3  # a folder that is not there is a typing error, a prefix never is
    assert run(["catalog", "find", *place]) == nothing
    assert run(["catalog", "add", "mine.zarr", *place, "--json"]) == 0
    capsys.readouterr()
    assert run(["catalog", "add", "mine.zarr", *place]) == 0, "adding again is not an error"
    capsys.readouterr()
    assert run(["catalog", "list", *place, "--json"]) == 0
    entries = _json(capsys)
    assert len(entries) == 1
    entry = entries[0]
    assert (entry["rows"], entry["topk"], entry["views"]) == (700, 3, 1)
    for words, code in (
        (["--teacher", "good", "--topk", "3", "--views", "1"], 0),
        (["--dataset", "npz", "--key", entry["store_key"][:20]], 0),
        (["--topk", "4"], 1),
        (["--views", "2"], 1),
        (["--teacher", "vit"], 1),
        (["--augment", "cifar"], 1),
    ):
        assert run(["catalog", "find", *place, *words]) == code, words
    capsys.readouterr()
    assert run(["catalog", "show", entry["root_digest"][:12], *place]) == 0
    shown = capsys.readouterr().out
    assert entry["store"] in shown
    assert "top 3" in shown
    assert run(["verify", f"{team.catalog}/{entry['store']}", "--deep"]) == 0
    assert run(["catalog", "remove", entry["root_digest"][:12], *place, "--with-store"]) == 0
    assert Catalog(team.catalog).entries() == []
    assert list(Catalog(team.catalog).location.list("stores")) == []
    assert run(["catalog", "show", "none", *place]) == 3


def test_the_second_of_two_dumps_is_told_or_waits(team: Team, capsys: pytest.CaptureFixture[str]) -> None:
    catalog = Catalog(team.catalog)
    assert run(team.dump("--dry-run", "--json")) == 0
    key = _json(capsys)["store_key"]
    asked = team.asked
    held = claim(catalog, key, what="npz by a colleague")
    assert held is not None
    with held:
        assert run(team.dump()) == 6
        told = capsys.readouterr().err
        assert "is dumping npz by a colleague" in told
        assert "--wait" in told
        assert team.asked == asked, "the teacher ran although someone else is at it"
        codes: list[int] = []
        words = [sys.executable, "-m", "kdcache", *team.dump("--wait")]
        waiting = threading.Thread(target=lambda: codes.append(subprocess.run(words, check=False).returncode))
        waiting.start()
        time.sleep(4)
        assert not codes
    waiting.join(timeout=120)
    assert codes == [0]
    assert len(catalog.entries()) == 1
    asked = team.asked
    assert run(team.dump()) == 0
    assert team.asked == asked
    assert [item.name for item in catalog.location.list("claims")] == []


def test_an_entry_whose_store_is_gone_or_another_is_passed_over(team: Team, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(team.dump("--json")) == 0
    catalog = Catalog(team.catalog)
    entry = catalog.entries()[0]
    names = [item.name for item in catalog.location.list(entry.store)]
    catalog.location.delete(*names)
    capsys.readouterr()
    assert run(team.dump("--json")) == 0
    captured = capsys.readouterr()
    assert "passed over" in captured.err
    assert not json.loads(captured.out)["reused"]
    assert catalog.entries() == [entry], "the same store is the same entry"


def test_a_catalogue_on_a_web_server_is_listed_from_its_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(tmp_path / "world")
    monkeypatch.chdir(world.folder)
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "cache"))
    assert run(world.dump(out="mine.zarr")) == 0
    assert run(["catalog", "add", "mine.zarr", "--catalog", str(tmp_path / "team")]) == 0
    with web_server(tmp_path / "team") as url:
        capsys.readouterr()
        assert run(["catalog", "list", "--catalog", url]) == 3
        assert "kdcache catalog build" in capsys.readouterr().err
        Catalog(tmp_path / "team").write_index()
        assert run(["catalog", "list", "--catalog", url, "--json"]) == 0
        entry = _json(capsys)[0]
        assert run(["catalog", "add", "mine.zarr", "--catalog", url]) == 2
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert run([*world.dump()[:-2], "--catalog", url, "--json"]) == 0
        assert _json(capsys)["reused"]
        assert run(world.distill("--student", "mlp-8", "--out", "run", store=f"{url}/{entry['store']}")) == 0


def test_without_a_catalogue_named_the_error_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["catalog", "list"]) == 2
    assert "KDCACHE_CATALOG" in capsys.readouterr().err


def test_a_store_made_before_there_was_a_catalogue_comes_into_it(
    team: Team, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(team.dump(out="mine.zarr")[:-2]) == 0  # without --catalog
    before = team.asked
    assert run(team.dump(out="mine.zarr")) == 0
    assert run(["catalog", "list", "--catalog", team.catalog, "--json"]) == 0
    assert run(team.dump(out="mine.zarr")) == 0
    assert "registered" not in capsys.readouterr().err.split("already covers this request")[-1], "once is enough"
    assert team.asked == before
    assert len(Catalog(team.catalog).entries()) == 1
