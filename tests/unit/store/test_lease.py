"""One living writer at a time; the dead and the silent are replaced."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdcache.errors import LockedError, ResourceError
from kdcache.store.lease import LEASE_FILE, acquire, holder_of


def edit(root: Path, **changes: object) -> None:
    path = root / LEASE_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_held_lease_names_host_process_and_time(tmp_path: Path) -> None:
    lease = acquire(tmp_path)
    with pytest.raises(LockedError, match=rf"process {os.getpid()} on .+ since 20\d\d-") as caught:
        acquire(tmp_path)
    assert caught.value.exit_code == 6
    assert holder_of(tmp_path) == lease.holder
    lease.release()
    assert holder_of(tmp_path) is None
    acquire(tmp_path).release()


def test_the_lease_of_a_dead_process_is_taken_over_at_once(tmp_path: Path) -> None:
    code = (
        "import os,sys; from pathlib import Path; from kdcache.store.lease import acquire;"
        "acquire(Path(sys.argv[1])); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    lease = acquire(tmp_path)
    assert lease.taken_over_from is not None
    assert lease.taken_over_from.pid != os.getpid()
    lease.release()


def test_a_reused_process_number_is_not_the_holder(tmp_path: Path) -> None:
    lease = acquire(tmp_path, beat_seconds=100)
    edit(tmp_path, process_start="1", token="other")
    taken = acquire(tmp_path)
    with pytest.raises(LockedError, match="lost its lease"):
        lease.check()
    lease.release()  # must not remove what is not its own
    taken.check()
    taken.release()


def test_a_folder_that_cannot_be_written_says_who_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only mount of a store that another host is writing: the time there cannot be asked."""
    lease = acquire(tmp_path, beat_seconds=100)
    edit(tmp_path, host="far-away")
    failure = OSError(errno.EROFS, "Read-only file system")

    def refuse(path: Path) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(Path, "touch", refuse)
        assert str(holder_of(tmp_path)).startswith(f"process {os.getpid()} on far-away")
        with pytest.raises(ResourceError, match="Read-only file system"):
            acquire(tmp_path)
    lease.release()


def test_another_hosts_lease_is_honoured_while_it_beats_and_taken_over_when_silent(tmp_path: Path) -> None:
    lease = acquire(tmp_path, beat_seconds=100)
    edit(tmp_path, host="far-away", token="other")
    with pytest.raises(LockedError, match="far-away"):
        acquire(tmp_path)
    long_ago = time.time() - 61
    os.utime(tmp_path / LEASE_FILE, (long_ago, long_ago))
    taken = acquire(tmp_path)
    assert taken.taken_over_from is not None
    assert taken.taken_over_from.host == "far-away"
    taken.release()
    lease.release()


def test_the_heartbeat_keeps_a_lease_alive(tmp_path: Path) -> None:
    lease = acquire(tmp_path, beat_seconds=0.02)
    os.utime(tmp_path / LEASE_FILE, (1, 1))
    deadline = time.monotonic() + 10
    while (tmp_path / LEASE_FILE).stat().st_mtime == 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (tmp_path / LEASE_FILE).stat().st_mtime > 1
    lease.release()


def test_a_torn_lease_file_counts_as_nobodys(tmp_path: Path) -> None:
    acquire(tmp_path).release()
    (tmp_path / LEASE_FILE).write_text('{"token": "x"')
    acquire(tmp_path).release()
