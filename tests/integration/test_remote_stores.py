"""Stores at a URL: opened, read, verified and pulled, against a real S3 API and a real web server.

Laws: what is read is what was written, and what travels is what is needed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kdcache.cli.main import run
from kdcache.errors import (
    ConfigError,
    CorruptStoreError,
    HostileStoreError,
    IncompatibleError,
    NotFoundError,
    RemoteError,
)
from kdcache.pull import PullConfig, leading_views, pull
from kdcache.store.info import describe
from kdcache.store.location import Location
from kdcache.store.reader import open_reader
from kdcache.store.transfer import pull_whole, push_store
from kdcache.store.verify import verify_store
from tests.remote_servers import Fault, Proxy, web_server
from tests.store_cases import manifest_of, store_bytes, write_store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kdcache"


def gets(proxy: Proxy) -> list[str]:
    return [request.path for request in proxy.requests if request.method == "GET"]


def test_opening_takes_two_requests_and_reads_nothing_else(pushed: str, s3_proxy: Proxy, cache: Path) -> None:
    reader = open_reader(pushed)
    assert reader.manifest.num_views == 3
    assert reader.location == pushed
    assert len(s3_proxy.requests) == 2
    assert not cache.exists()


def test_a_view_is_what_was_written_and_moves_its_chunks_once(pushed: str, s3_proxy: Proxy) -> None:
    reader = open_reader(pushed)
    s3_proxy.requests.clear()
    columns = reader.view(0)
    chunks = 4 * 6  # blocks of view 0, six arrays with rows
    assert s3_proxy.count() == {"GET": chunks}
    assert (columns.topk_index == open_reader(pushed).view(0).topk_index).all()
    reader.release()
    s3_proxy.requests.clear()
    reader.view(1)
    assert s3_proxy.count() == {"GET": 4 * 4}
    reader.static("class_weight")
    assert s3_proxy.count() == {"GET": 4 * 4 + 1}


def test_remote_and_local_readers_say_the_same(pushed: str, store: Path) -> None:
    near, far = open_reader(store), open_reader(pushed)
    for view in range(3):
        for name in ("topk_index", "topk_log_prob", "tail", "label_log_prob"):
            assert np.array_equal(getattr(near.view(view), name), getattr(far.view(view), name))
    assert np.array_equal(near.labels, far.labels)
    assert np.array_equal(near.row_digests, far.row_digests)
    assert np.array_equal(near.static("class_weight"), far.static("class_weight"))


def test_a_second_reader_fetches_nothing_again(pushed: str, s3_proxy: Proxy) -> None:
    open_reader(pushed).view(1)
    s3_proxy.requests.clear()
    open_reader(pushed).view(1)
    assert len(s3_proxy.requests) == 2  # manifest and ledger


def test_an_interrupted_fetch_continues_with_what_is_missing(pushed: str, s3_proxy: Proxy) -> None:
    s3_proxy.faults = [Fault("403", lambda request: "/tail/c/1/2" in request.path, times=1)]
    with pytest.raises(RemoteError):
        open_reader(pushed).view(1)
    s3_proxy.requests.clear()
    open_reader(pushed).view(1)
    fetched = [path for path in gets(s3_proxy) if "/c/1/" in path]
    assert any("/tail/c/1/2" in path for path in fetched)
    assert len(fetched) < 16


@pytest.mark.parametrize("damage", ["flipped", "short", "other", "empty"])
def test_a_damaged_file_of_the_local_copy_is_fetched_again(pushed: str, cache: Path, damage: str) -> None:
    expected = open_reader(pushed).view(1).tail.copy()
    copy = next(cache.glob("*/store"))
    file = copy / "tail/c/1/2/0"
    data = file.read_bytes()
    other = (copy / "tail/c/1/1/0").read_bytes()
    file.write_bytes(
        {"flipped": data[:-9] + b"x" + data[-8:], "short": data[:20], "other": other, "empty": b""}[damage]
    )
    assert np.array_equal(open_reader(pushed).view(1).tail, expected)


def test_a_store_damaged_at_its_place_is_refused_by_name(pushed: str) -> None:
    place = Location.at(pushed)
    one, two = place.get("tail/c/1/1/0"), place.get("tail/c/1/2/0")
    place.put("tail/c/1/1/0", two)
    place.put("tail/c/1/2/0", one)
    with pytest.raises(CorruptStoreError, match=r"view 1 block [12].*ledger") as caught:
        open_reader(pushed).view(1)
    assert pushed in caught.value.message
    assert "cache" not in caught.value.message
    report = verify_store(pushed)
    assert report.exit_code == 4
    assert {problem.block for problem in report.problems} == {1, 2}
    place.delete("tail/c/1/1/0")
    with pytest.raises(CorruptStoreError, match="the chunk is missing"):
        open_reader(pushed).view(1)


def test_a_hostile_manifest_is_refused_before_anything_else_is_fetched(pushed: str, s3_proxy: Proxy) -> None:
    place = Location.at(pushed)
    value = json.loads(place.get("zarr.json"))
    place.put("zarr.json", json.dumps({**value, "zarr_format": 2}).encode())
    s3_proxy.requests.clear()
    with pytest.raises(HostileStoreError):
        open_reader(pushed)
    assert len(s3_proxy.requests) == 1
    value["attributes"]["kdcache"]["num_views"] = 2
    place.put("zarr.json", json.dumps(value).encode())
    with pytest.raises(CorruptStoreError):
        open_reader(pushed)


def test_verify_streams_and_info_describes(pushed: str, store: Path, cache: Path) -> None:
    report = verify_store(pushed, deep=True)
    assert (report.exit_code, report.blocks_checked) == (0, 12)
    assert not cache.exists()
    near, far = describe(store), describe(pushed)
    assert {**near, "location": ""} == {**far, "location": ""}
    Location.at(pushed).put("topk_index/c/9/9/9", b"stray")
    assert [problem.array for problem in verify_store(pushed).problems] == ["topk_index/c/9/9/9"]


def test_there_is_no_store_is_said_plainly(s3_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotFoundError, match="no such store"):
        open_reader(s3_url)
    for words in (["info", s3_url], ["verify", s3_url], ["pull", s3_url, "x"]):
        assert run(words) == 3
        assert s3_url in capsys.readouterr().err


# pull


@pytest.fixture(params=["s3", "http", "memory", "folder"])
def anywhere(request: pytest.FixtureRequest, store: Path) -> Iterator[str]:
    """The store at a place of each kind."""
    if request.param == "s3":
        yield request.getfixturevalue("pushed")
    elif request.param == "http":
        with web_server(store.parent) as url:
            yield f"{url}/{store.name}"
    elif request.param == "memory":
        push_store(str(store), "memory://pulls/s")
        yield "memory://pulls/s"
    else:
        yield str(store)


def test_pull_brings_the_same_store_from_anywhere(anywhere: str, store: Path, tmp_path: Path) -> None:
    done = pull_whole(anywhere, tmp_path / "pulled")
    assert store_bytes(tmp_path / "pulled") == store_bytes(store)
    assert verify_store(tmp_path / "pulled", deep=True).exit_code == 0
    assert not (tmp_path / "pulled" / ".kdcache").exists()
    chunks = [data for name, data in store_bytes(store).items() if "/c/" in name and not name.startswith("commit")]
    assert done.bytes_moved == sum(map(len, chunks))
    assert pull_whole(anywhere, tmp_path / "pulled").already


def test_a_part_moves_what_it_needs_and_names_its_parent(anywhere: str, store: Path, tmp_path: Path) -> None:
    part = pull(PullConfig(source=anywhere, folder=str(tmp_path / "part"), views=1, topk=3))
    manifest = open_reader(tmp_path / "part").manifest
    parent = open_reader(store).manifest
    assert (manifest.num_views, manifest.codec.topk) == (1, 3)
    assert part.parent == parent.root_digest == manifest.parents[0]["root_digest"]
    assert verify_store(tmp_path / "part", deep=True).exit_code == 0
    near = open_reader(tmp_path / "part").view(0)
    assert np.array_equal(near.topk_index, open_reader(store).view(0).topk_index[:, :3])
    if "://" in anywhere:
        assert part.bytes_moved < 0.6 * sum(map(len, store_bytes(store).values()))


def test_one_view_of_twenty_moves_at_most_six_percent(tmp_path: Path, s3_url: str, s3_proxy: Proxy) -> None:
    write_store(tmp_path / "wide", manifest_of(rows=256, classes=1000, topk=10, views=20))
    push_store(str(tmp_path / "wide"), s3_url)
    total = sum(map(len, store_bytes(tmp_path / "wide").values()))
    s3_proxy.requests.clear()
    part = pull(PullConfig(source=s3_url, folder=str(tmp_path / "part"), views=1))
    assert part.bytes_moved <= 0.06 * total
    assert len(s3_proxy.requests) <= 4 + 6


def test_an_interrupted_pull_continues(pushed: str, store: Path, s3_proxy: Proxy, tmp_path: Path) -> None:
    s3_proxy.faults = [Fault("403", lambda request: "/tail/c/2/1" in request.path)]
    with pytest.raises(RemoteError):
        pull_whole(pushed, tmp_path / "pulled")
    with pytest.raises(IncompatibleError):
        open_reader(tmp_path / "pulled")  # no manifest yet
    s3_proxy.requests.clear()
    pull_whole(pushed, tmp_path / "pulled")
    assert len(gets(s3_proxy)) < 2 + 12 * 4
    assert store_bytes(tmp_path / "pulled") == store_bytes(store)


def test_pull_does_not_touch_other_things(pushed: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("important")
    with pytest.raises(IncompatibleError, match=r"thesis\.tex"):
        pull_whole(pushed, tmp_path / "home")
    write_store(tmp_path / "other", manifest_of(teacher="another-teacher"))
    with pytest.raises(IncompatibleError, match="another-teacher"):
        pull_whole(pushed, tmp_path / "other")
    with pytest.raises(ConfigError, match="local folder"):
        pull_whole(pushed, "s3://bucket/x")


def test_a_swapped_chunk_is_never_pulled_as_sound(pushed: str, tmp_path: Path) -> None:
    place = Location.at(pushed)
    place.put("tail/c/1/1/0", place.get("tail/c/1/2/0"))
    with pytest.raises(CorruptStoreError, match="view 1 block 1"):
        pull_whole(pushed, tmp_path / "pulled")
    assert not (tmp_path / "pulled" / "zarr.json").exists()


@pytest.mark.parametrize(("text", "count"), [("0:4", 4), ("4", 4), (":2", 2)])
def test_views_are_named_as_a_range_from_zero(text: str, count: int) -> None:
    assert leading_views(text) == count


@pytest.mark.parametrize("text", ["1:4", "0:0", "a:b", "", "0:", "-1", "0:4:2"])
def test_other_ranges_are_a_usage_error(text: str) -> None:
    with pytest.raises(ConfigError, match="views"):
        leading_views(text)


def test_the_commands_speak_json_and_text(
    store: Path, s3_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["push", str(store), s3_url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["store"] == s3_url
    assert run(["pull", s3_url, str(tmp_path / "a"), "--views", "0:2"]) == 0
    assert "part of" in capsys.readouterr().out
    for words in (["info", s3_url], ["verify", s3_url, "--deep"]):
        assert run(words) == 0
        assert s3_url in capsys.readouterr().out
    assert run(["pull", s3_url, str(tmp_path / "b"), "--views", "2:3"]) == 2


def test_statistics_are_the_same_at_a_url(anywhere: str, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Measured anew each time, or different because a local copy has no array metadata.
    differ = ("location", "seconds", "rows_per_second", "bytes_on_disk", "bytes_by_array")
    figures = []
    for place in (str(store), anywhere):
        assert run(["stats", place, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        figures.append({name: value for name, value in found.items() if name not in differ})
    assert figures[0] == figures[1]
    assert all(sum(sizes) > 0 for sizes in figures[1]["bytes_by_view"].values())


def test_without_obstore_a_url_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError, match="obstore") as caught:
        Location.at("s3://bucket/store")
    assert "kdcache[s3]" in caught.value.hint


def test_help_and_local_commands_load_no_object_store(store: Path) -> None:
    code = (
        "import sys; from kdcache.cli.main import run; run(['info', sys.argv[1]]); assert 'obstore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(store)], check=True, stdout=subprocess.DEVNULL)
