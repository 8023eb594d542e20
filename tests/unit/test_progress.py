"""Progress goes to stderr, a line at most every ten seconds, and nothing when quiet."""

from __future__ import annotations

import pytest

from kdcache import progress
from kdcache.progress import Progress, duration, note, set_quiet


def test_lines_elsewhere_are_rare_and_tell_rate_and_rest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(1000, "rows", label="dump") as shown:
        for _ in range(100):
            now[0] += 0.25
            shown.update(10, {"loss": 0.5})
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 2  # 25 seconds
    assert lines[0] == "dump: 400/1,000 rows (40 rows/s, 15 s left) loss 0.5"
    assert shown.done == 1000


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    set_quiet(True)
    try:
        note("hello")
        with Progress(10, "rows") as shown:
            shown.update(10)
    finally:
        set_quiet(False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.4, "8 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (float("inf"), "unknown time")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text
