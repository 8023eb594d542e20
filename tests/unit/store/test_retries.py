"""Tries are bounded, waits grow within their bounds, and only what may pass is tried again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.errors import ConfigError, NotFoundError, RemoteError
from kdcache.store.retries import Passing, Patience, persist, will_pass

QUICK = Patience(attempts=4, first_wait=0.0, timeout=1)


@given(attempt=st.integers(0, 40), first=st.floats(0, 5), longest=st.floats(0, 20))
def test_a_wait_is_between_half_and_all_of_the_growing_bound(attempt: int, first: float, longest: float) -> None:
    bound = min(longest, first * 2.0**attempt)
    assert bound / 2 <= Patience(first_wait=first, longest_wait=longest).wait(attempt) <= bound


def test_it_stops_at_the_first_success() -> None:
    tries = []

    def action() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise Passing("not yet")
        return 7

    assert persist(action, what="GET x", patience=QUICK) == 7
    assert len(tries) == 3


def test_it_gives_up_after_its_attempts_and_says_why() -> None:
    tries = []

    def action() -> int:
        tries.append(1)
        raise Passing(f"reason {len(tries)}")

    with pytest.raises(RemoteError, match=r"GET x: failed 4 times in [0-9.]+ s; the last time: reason 4"):
        persist(action, what="GET x", patience=QUICK)


def test_what_is_final_is_not_tried_again() -> None:
    tries = []

    def action() -> int:
        tries.append(1)
        raise NotFoundError("gone")

    with pytest.raises(NotFoundError):
        persist(action, what="GET x", patience=QUICK)
    assert len(tries) == 1


@pytest.mark.parametrize(
    ("reason", "later"),
    [
        ("status code: 404 Not Found", False),
        ("status code: 400 Bad Request", False),
        ("status code: 429 Too Many Requests", True),
        ("status code: 503 Slow Down", True),
        ("connection reset", True),
    ],
)
def test_client_errors_are_final_but_for_those_about_time(reason: str, later: bool) -> None:
    assert will_pass(reason) is later


@pytest.mark.parametrize(
    "setting", [{"attempts": 0}, {"timeout": 0.0}, {"timeout": float("nan")}, {"first_wait": -1.0}]
)
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Patience(**setting)  # type: ignore[arg-type]


def test_the_environment_changes_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ATTEMPTS", "2"), ("TIMEOUT", "1.5"), ("WAIT", "0.5")):
        monkeypatch.setenv(f"KDCACHE_REMOTE_{name}", value)
    found = Patience.from_environment()
    assert (found.attempts, found.timeout, found.first_wait) == (2, 1.5, 0.5)
