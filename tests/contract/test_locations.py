"""One suite for every kind of Location: the same names, bytes, conditions and errors, whatever serves them.

The S3 API is moto's server, the web server is python's; both are real processes on 127.0.0.1.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdcache.errors import ConfigError, HostileStoreError, KdcacheError, NotFoundError, RemoteError
from kdcache.store.location import Location
from tests.remote_servers import CREDENTIALS, Fault, Proxy, Request, proxy_to, web_server

WRITABLE = ["folder", "file", "memory", "s3"]
KINDS = [*WRITABLE, "http"]


class World:
    """A location of one kind, and a way to put objects behind its back."""

    def __init__(self, location: Location, behind: Location) -> None:
        self.location = location
        self.behind = behind


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    kind = request.param
    if kind == "s3":
        place = Location.at(request.getfixturevalue("s3_url"))
    elif kind == "http":
        with web_server(tmp_path) as url:
            yield World(Location.at(f"{url}/stores/a"), Location.at(tmp_path / "stores" / "a"))
        return
    elif kind == "memory":
        place = Location.at(f"memory://{uuid.uuid4().hex}/stores")
    else:
        place = Location.at(f"file://{tmp_path}/stores" if kind == "file" else tmp_path / "stores")
    yield World(place, place)


every_kind = pytest.mark.parametrize("world", KINDS, indirect=True)
writable = pytest.mark.parametrize("world", WRITABLE, indirect=True)
on_s3 = pytest.mark.parametrize("world", ["s3"], indirect=True)


@every_kind
def test_what_was_put_is_got_whole_and_in_parts(world: World) -> None:
    data = bytes(range(256)) * 40
    world.behind.put("array/c/0/1", data)
    place = world.location
    assert place.get("array/c/0/1") == data
    assert (place / "array").get("c/0/1", limit=len(data)) == data
    assert (place / "array/c/0/1").get() == data
    assert place.get_range("array/c/0/1", 3, 300) == data[3:300]
    assert place.get_range("array/c/0/1", len(data) - 2, len(data) + 50) == data[-2:]
    assert place.size("array/c/0/1") == len(data)


@every_kind
def test_an_absent_object_is_not_found_and_is_named(world: World) -> None:
    world.behind.put("there", b"x")
    with pytest.raises(NotFoundError, match="absent/object"):
        world.location.get("absent/object")
    assert world.location.size("absent") is None


@every_kind
def test_an_object_larger_than_it_may_be_is_refused(world: World) -> None:
    world.behind.put("big", b"x" * 1000)
    with pytest.raises(HostileStoreError, match=r"1000 bytes; expected at most 999"):
        world.location.get("big", limit=999)


@every_kind
@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a//b", ".", "a/..", "a\\b", "a\x00b", "a/"])
def test_a_name_cannot_leave_its_location(world: World, name: str) -> None:
    for use in (world.location.get, world.location.size, lambda name: world.location / name):
        with pytest.raises(HostileStoreError, match="does not stay inside"):
            use(name)


@every_kind
def test_names_with_spaces_and_other_letters_are_plain_names(world: World) -> None:
    name = "Größe 100 %/a+b=c&d?.json"
    world.behind.put(name, b"{}")
    assert world.location.get(name) == b"{}"
    if not world.location.read_only:
        assert [entry.name for entry in world.location.list()] == [name]


@writable
def test_put_replaces_and_delete_removes(world: World) -> None:
    place = world.location
    place.put("a/b", b"1")
    place.put("a/b", b"22")
    assert place.get("a/b") == b"22"
    place.delete("a/b", "never/there")
    assert place.size("a/b") is None
    place.delete("a/b")


@writable
def test_a_listing_names_what_is_under_a_folder_and_only_that(world: World) -> None:
    place = world.location
    for name in ("stores/one.json", "stores/two.json", "stores-not/x", "top"):
        place.put(name, name.encode())
    assert {entry.name: entry.size for entry in place.list()} == {
        name: len(name) for name in ("stores/one.json", "stores/two.json", "stores-not/x", "top")
    }
    assert sorted(entry.name for entry in place.list("stores")) == ["stores/one.json", "stores/two.json"]
    assert sorted(entry.name for entry in (place / "stores").list()) == ["one.json", "two.json"]
    assert list(place.list("nothing")) == []
    assert all(abs(entry.modified - next(place.list()).modified) < 60 for entry in place.list())


@writable
def test_put_new_writes_only_where_there_is_nothing(world: World) -> None:
    place = world.location
    assert place.put_new("claim", b"mine")
    assert place.put_new("claim", b"mine")  # the same content: as good as written
    assert not place.put_new("claim", b"theirs")
    assert place.get("claim") == b"mine"


@writable
def test_of_many_who_put_new_at_once_one_wins(world: World) -> None:
    place, wins = world.location, []
    place.put("other", b"")

    def claim(number: int) -> None:
        if place.put_new("claims/one", str(number).encode()):
            wins.append(number)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert place.get("claims/one") == str(wins[0]).encode()


@writable
def test_replace_writes_over_exactly_the_version_it_was_told(world: World) -> None:
    place = world.location
    place.put("lease", b"one")
    _, version = place.get_version("lease")
    second = place.replace("lease", b"two", version)
    assert second is not None
    assert place.replace("lease", b"three", version) is None
    assert place.get("lease") == b"two"
    assert place.replace("lease", b"three", second) is not None
    place.delete("lease")
    assert place.replace("lease", b"four", second) is None


@pytest.mark.parametrize("world", ["http"], indirect=True)
def test_a_web_server_is_only_read(world: World) -> None:
    place = world.location
    assert place.read_only
    for use in (lambda: place.put("x", b""), lambda: place.put_new("x", b""), lambda: place.delete("x")):
        with pytest.raises(ConfigError, match="only read"):
            use()
    with pytest.raises(ConfigError, match="cannot list"):
        list(place.list())


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "s3://", "http://", "az://c/p", "file://relative/path", "s3://[bad/x", "nonsense://x"]
)
def test_a_url_that_names_no_place_is_a_usage_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError):
        Location.at(url)


@pytest.mark.parametrize("url", ["gs://bucket/store", "az://container/store", "https://host/folder"])
def test_other_services_are_reached_by_their_own_names(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert str(Location.at(url) / "zarr.json") == f"{url}/zarr.json"


# Faults of a service: nothing is lost, tries are bounded, the last error says what and where.


@on_s3
@pytest.mark.parametrize("kind", ["500", "503", "late", "truncated", "lost"])
def test_a_passing_fault_is_not_seen(world: World, s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("KDCACHE_REMOTE_TIMEOUT", "0.8" if kind == "late" else "5")
    place = Location.at(world.location.url)
    data = b"0123456789" * 100
    if kind != "truncated":  # a write has no body to cut
        s3_proxy.faults = [Fault(kind, lambda request: request.method == "PUT", times=2, seconds=1.5)]
        place.put("x", data)
    else:
        place.put("x", data)
    s3_proxy.faults = [Fault(kind, lambda request: request.method == "GET", times=2, seconds=1.5)]
    s3_proxy.requests.clear()
    assert place.get("x") == data
    assert s3_proxy.count()["GET"] in ((3, 4) if kind == "late" else (3,))  # a busy machine may be late once more


@on_s3
@pytest.mark.parametrize("kind", ["503", "truncated", "lost"])
def test_a_lasting_fault_ends_after_bounded_tries_with_a_clear_error(world: World, s3_proxy: Proxy, kind: str) -> None:
    place = world.location
    place.put("x", b"0123456789")
    s3_proxy.requests.clear()
    s3_proxy.faults = [Fault(kind, times=1000)]
    with pytest.raises(
        RemoteError, match=rf"GET {place.url}/x: failed 4 times in [0-9.]+ s; the last time: "
    ) as caught:
        place.get("x")
    assert caught.value.exit_code == 5
    assert s3_proxy.count() == {"GET": 4}


@on_s3
def test_refused_access_is_final_and_says_so(world: World, s3_proxy: Proxy) -> None:
    s3_proxy.faults = [Fault("403", times=1000)]
    with pytest.raises(RemoteError, match="access refused"):
        world.location.put("x", b"")
    assert s3_proxy.count() == {"PUT": 1}


@on_s3
def test_a_lost_reply_to_an_exclusive_write_that_landed_is_no_conflict(world: World, s3_proxy: Proxy) -> None:
    s3_proxy.faults = [Fault("lost", lambda request: request.method == "PUT")]
    assert world.location.put_new("manifest", b"mine")
    s3_proxy.faults = [Fault("lost", lambda request: request.method == "PUT")]
    assert not world.location.put_new("manifest", b"other")
    assert world.location.get("manifest") == b"mine"


@on_s3
def test_a_lost_reply_to_a_replacement_that_landed_is_no_conflict(world: World, s3_proxy: Proxy) -> None:
    world.location.put("lease", b"one")
    _, version = world.location.get_version("lease")
    s3_proxy.faults = [Fault("lost", lambda request: request.method == "PUT")]
    second = world.location.replace("lease", b"two", version)
    assert second is not None
    assert world.location.replace("lease", b"three", second) is not None


def test_a_service_that_is_not_there_is_a_remote_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KDCACHE_REMOTE_ATTEMPTS", "2")
    with pytest.raises(RemoteError, match="failed 2 times"):
        Location.at("s3://bucket/x").get("y")


@pytest.mark.parametrize(("name", "value"), [("ATTEMPTS", "many"), ("ATTEMPTS", "0"), ("TIMEOUT", "-1")])
def test_a_wrong_setting_is_a_usage_error(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"KDCACHE_REMOTE_{name}", value)
    with pytest.raises(ConfigError, match="KDCACHE_REMOTE"):
        Location.at("memory://x/y")


# Credentials: in no message, whatever fails.


def test_no_credential_is_ever_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_proxy: Proxy) -> None:
    monkeypatch.setenv("KDCACHE_REMOTE_ATTEMPTS", "1")
    said = []
    with web_server(tmp_path) as url:
        host = url.removeprefix("http://")
        for place in (f"http://user:hunter2pass@{host}/s?X-Amz-Signature=abc123def", "s3://nobucket-there/x"):
            location = Location.at(place)
            said += [str(location), repr(location), str(location / "zarr.json")]
            for use in (location.get, location.size, lambda name, at=location: at.put(name, b"x")):
                try:
                    use("absent")
                except KdcacheError as error:
                    said += [str(error), repr(error), repr(error.__cause__), repr(error.__context__)]
    s3_proxy.faults = [Fault("403", times=100)]
    with pytest.raises(RemoteError) as refused:
        Location.at("s3://bucket/x").get("y")
    said.append(str(refused.value))
    text = "\n".join(said)
    for secret in ("hunter2pass", "abc123def", *list(CREDENTIALS.values())[:2]):
        assert secret not in text
    assert "user:" not in text
    assert any("only read" in line for line in said)


def test_requests_keep_the_signature_of_a_signed_web_folder(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "x").write_bytes(b"1")
    with web_server(tmp_path) as url, proxy_to(url) as proxy:
        assert Location.at(f"{proxy.url}/s?sig=abc").get("x") == b"1"
        assert proxy.requests == [Request("GET", "/s/x?sig=abc")]


def test_a_link_in_a_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"other people's")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(HostileStoreError, match="link"):
        Location.at(tmp_path / "shared").get("link")


def test_files_are_made_with_the_users_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        place = Location.at(tmp_path / "shared")
        place.put("a/b", b"1")
        assert place.put_new("a/c", b"1")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "shared").rglob("*")}
    assert modes == {"a": 0o750, "b": 0o640, "c": 0o640}
