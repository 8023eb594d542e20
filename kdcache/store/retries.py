"""The one place where remote requests are tried again: bounded attempts, growing waits with jitter, one final error.

It knows nothing of any protocol: the object-store adapter says which failures may pass by raising `Passing`.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kdcache.errors import ConfigError, RemoteError

T = TypeVar("T")
_CLIENT_ERROR = re.compile(r"status code: (4\d\d)")
_PASSING_CODES = frozenset({"408", "425", "429"})  # time-out, too early, too many requests
_JITTER = random.Random()  # not part of any result: only spreads the waits of many clients


class Passing(Exception):  # noqa: N818 - a signal between two modules, not an error anyone sees
    """A failure that may pass: a server error, a slow-down, a broken connection, a time-out, a truncated body."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a request is tried.

    Attributes:
        attempts: tries in all.
        first_wait: seconds before the second try; each further wait is twice as long.
        longest_wait: seconds a wait may grow to.
        timeout: seconds without a byte before a try counts as failed.
    """

    attempts: int = 8  # waits of 0.2 to 10 s, about 25 s in all: longer than a slow-down, shorter than a night
    first_wait: float = 0.2
    longest_wait: float = 10.0
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or not self.timeout > 0 or not self.first_wait >= 0:
            raise ConfigError(
                f"remote requests: expected at least 1 attempt, a positive timeout and a wait of at least 0, found"
                f" {self.attempts}, {self.timeout} s and {self.first_wait} s",
                hint="check KDCACHE_REMOTE_ATTEMPTS, KDCACHE_REMOTE_TIMEOUT and KDCACHE_REMOTE_WAIT",
            )

    @classmethod
    def from_environment(cls) -> Patience:
        """The defaults, changed by KDCACHE_REMOTE_ATTEMPTS, KDCACHE_REMOTE_TIMEOUT and KDCACHE_REMOTE_WAIT (seconds).

        Raises:
            ConfigError: one of them is not a number.
        """
        try:
            return cls(
                attempts=int(os.environ.get("KDCACHE_REMOTE_ATTEMPTS") or cls.attempts),
                timeout=float(os.environ.get("KDCACHE_REMOTE_TIMEOUT") or cls.timeout),
                first_wait=float(os.environ.get("KDCACHE_REMOTE_WAIT") or cls.first_wait),
            )
        except ValueError as error:
            raise ConfigError(f"KDCACHE_REMOTE_ATTEMPTS, _TIMEOUT or _WAIT is not a number: {error}") from error

    def wait(self, attempt: int) -> float:
        """Seconds to wait after a failed try (0 is the first): half of the growing wait and up to as much again."""
        whole = min(self.longest_wait, self.first_wait * float(2**attempt))
        return whole / 2 + _JITTER.random() * whole / 2


def will_pass(reason: str) -> bool:
    """Whether a failed answer may be another one later: all but the client errors, which will be the same again.

    Args:
        reason: the library's text; it names the status code of an answer.
    """
    status = _CLIENT_ERROR.search(reason)
    return status is None or status[1] in _PASSING_CODES


def persist(action: Callable[[], T], *, what: str, patience: Patience) -> T:
    """Do something until it works.

    Args:
        action: one try; raises `Passing` when it may work later. Anything else it raises is final.
        what: names the request in the final error, credential-free: "GET s3://bucket/store/zarr.json".
        patience: how long.

    Raises:
        RemoteError: every try failed; the message says how many, over how long, and the last reason.
    """
    started = time.monotonic()
    for attempt in range(patience.attempts):
        try:
            return action()
        except Passing as failure:
            last = failure
        if attempt + 1 < patience.attempts:
            time.sleep(patience.wait(attempt))
    raise RemoteError(
        f"{what}: failed {patience.attempts} times in {time.monotonic() - started:.1f} s; the last time: {last}",
        hint="check the network and the service, then give the same command again: it continues where it stopped",
    ) from last
