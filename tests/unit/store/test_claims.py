"""One block, one worker: claims are exclusive, show that they live, and are freed when their holder does not."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kdcache.errors import LostClaimError, ResourceError
from kdcache.store.blocks import BlockId
from kdcache.store.claims import (
    CLAIMS_FOLDER,
    Claims,
    claimed_places,
    make_claims_folder,
    place_of_partial,
    remove_dead_claims,
)
from kdcache.store.layout import layout_of
from tests.store_cases import manifest_of

BLOCK, OTHER = BlockId(0, 3, 768, 1024), BlockId(1, 0, 0, 256)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_claims_folder(tmp_path)
    return tmp_path


def edit(root: Path, name: str, **changes: object) -> None:
    path = root / CLAIMS_FOLDER / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_of_many_claimants_one_gets_the_block(root: Path) -> None:
    claimants = [Claims(root, beat_seconds=100) for _ in range(8)]
    start, taken = threading.Barrier(8), []

    def race(claims: Claims) -> None:
        start.wait()
        taken.append(claims.take(BLOCK))

    threads = [threading.Thread(target=race, args=(claims,)) for claims in claimants]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False] * 7 + [True]
    for claims in claimants:
        claims.close()
    assert not claimed_places(root)


def test_a_released_block_can_be_claimed_again(root: Path) -> None:
    one, two = Claims(root), Claims(root)
    assert one.take(BLOCK)
    assert not two.take(BLOCK)
    assert two.take(OTHER)
    one.check(BLOCK)
    one.release(BLOCK)
    one.release(BLOCK)
    assert two.take(BLOCK)
    assert claimed_places(root) == {(0, 3), (1, 0)}
    one.close()
    two.close()


def test_claims_go_on_being_shown_after_a_look_that_failed(root: Path) -> None:
    """A file system that stutters for a moment: the thread that shows the claims must not end with the look."""
    looks: list[int] = []

    def look() -> None:
        looks.append(len(looks))
        raise OSError(errno.ESTALE, "stale file handle") if len(looks) == 1 else ResourceError("no space")

    claims = Claims(root, beat_seconds=0.01, on_beat=look)
    assert claims.take(BLOCK)
    deadline = time.monotonic() + 10
    while len(looks) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    claims.close()
    assert len(looks) >= 3


def test_a_claim_of_a_killed_process_is_freed_at_once(root: Path) -> None:
    code = (
        "import os,sys; from pathlib import Path; from kdcache.store.claims import Claims;"
        "from kdcache.store.blocks import BlockId;"
        "print(Claims(Path(sys.argv[1])).take(BlockId(0, 3, 768, 1024)), flush=True); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], check=False, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
    freed = remove_dead_claims(root)
    assert list(freed) == [(0, 3)]
    holder = freed[0, 3]
    assert holder is not None
    assert holder.pid != os.getpid()
    assert not claimed_places(root)


def test_a_claim_elsewhere_is_honoured_while_it_beats_and_freed_when_silent(root: Path) -> None:
    claims = Claims(root, beat_seconds=100)
    claims.take(BLOCK)
    edit(root, "0-3.json", host="far-away")
    assert not remove_dead_claims(root)
    long_ago = time.time() - 61
    os.utime(root / CLAIMS_FOLDER / "0-3.json", (long_ago, long_ago))
    freed = remove_dead_claims(root)
    assert "far-away" in str(freed[0, 3])
    with pytest.raises(LostClaimError, match="view 0 block 3"):
        claims.check(BLOCK)
    assert not claims.holds(BLOCK)
    claims.close()


def test_a_stopped_process_here_loses_its_claim_too(root: Path) -> None:
    claims = Claims(root, beat_seconds=100)
    claims.take(BLOCK)
    assert not remove_dead_claims(root)
    os.utime(root / CLAIMS_FOLDER / "0-3.json", (1, 1))
    assert list(remove_dead_claims(root)) == [(0, 3)]
    claims.close()


def test_the_heartbeat_keeps_claims_alive_and_calls_back(root: Path) -> None:
    beaten = threading.Event()
    claims = Claims(root, beat_seconds=0.02, on_beat=beaten.set)
    claims.take(BLOCK)
    path = root / CLAIMS_FOLDER / "0-3.json"
    os.utime(path, (1, 1))
    deadline = time.monotonic() + 10
    while path.stat().st_mtime == 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.stat().st_mtime > 1
    assert beaten.wait(10)
    claims.close()


def test_a_claim_of_another_is_neither_released_nor_kept(root: Path) -> None:
    claims = Claims(root, beat_seconds=100)
    claims.take(BLOCK)
    edit(root, "0-3.json", token="other")
    claims.release(BLOCK)
    assert claimed_places(root) == {(0, 3)}
    claims.close()


def test_an_empty_claim_is_freed_when_it_is_old(root: Path) -> None:
    path = root / CLAIMS_FOLDER / "0-3.json"
    path.touch()
    (root / CLAIMS_FOLDER / "notes.txt").touch()
    assert not remove_dead_claims(root)
    os.utime(path, (1, 1))
    assert remove_dead_claims(root) == {(0, 3): None}
    assert (root / CLAIMS_FOLDER / "notes.txt").exists()


def test_a_partial_file_belongs_to_the_claim_of_its_block() -> None:
    layout = layout_of(manifest_of(rows=1000, views=2))
    for relative, place in {
        "tail/c/1/3/0.abc123.partial": (1, 3),
        "label/c/2.abc123.partial": (0, 2),
        "label_log_prob/c/1/0.abc123.partial": (1, 0),
        "commit/c/0/0.abc123.partial": None,
        "zarr.json.abc123.partial": None,
        "tail/c/1.abc123.partial": None,
        "other/c/1/3/0.abc123.partial": None,
    }.items():
        assert place_of_partial(relative, layout) == place, relative
