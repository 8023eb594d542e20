"""The errors kdcache raises on purpose, each with the exit code the command line gives it.

Every message names the subject, what was expected and what was found; the hint is the next command or step.
This module imports nothing, so that every layer can use it.
"""

from __future__ import annotations


class KdcacheError(Exception):
    """Base of every error a user can cause or meet.

    Args:
        message: subject, expected and found, in one sentence.
        hint: what to type or do next; printed on its own line.
    """

    exit_code = 70

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  next: {self.hint}" if self.hint else self.message


class CheckFailedError(KdcacheError):
    """A comparison that the user asked for says no (`verify --replay`, a weak teacher)."""

    exit_code = 1


class WeakTeacherError(CheckFailedError):
    """The teacher is near chance on the labels: random weights, permuted classes or wrong preprocessing."""


class ConfigError(KdcacheError):
    """An option or argument is outside its range, or names something unknown."""

    exit_code = 2


class NotFoundError(KdcacheError):
    """A store, data set, card, model or weights file is not there."""

    exit_code = 3


class IncompatibleError(KdcacheError):
    """Two things do not belong together: a store and other data, weights and another architecture, a newer format."""

    exit_code = 3


class OtherRequestError(IncompatibleError):
    """A run folder or store holds what was made for another request; it is never overwritten."""


class UnfinishedStoreError(KdcacheError):
    """The store is not sealed; training from it is refused."""

    exit_code = 3


class CorruptStoreError(KdcacheError):
    """Bytes or structure of a store are not what its manifest and ledger say."""

    exit_code = 4


class ChecksumError(CorruptStoreError):
    """Bytes at rest do not match their checksum or ledger digest."""


class HostileStoreError(CorruptStoreError):
    """The metadata asks for something format 1 never needs: refused before anything is decoded."""


class RemoteError(KdcacheError):
    """Object storage or the network failed after bounded retries."""

    exit_code = 5


class ResourceError(KdcacheError):
    """Out of disk space, memory or permissions."""

    exit_code = 6


class LockedError(ResourceError):
    """Another living process is writing this store."""


class LostClaimError(LockedError):
    """A block this worker had claimed was taken over; the worker goes on with other blocks."""


class NumericError(KdcacheError):
    """NaN or infinity where a number was needed; the message says which rows."""

    exit_code = 1
