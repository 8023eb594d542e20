"""Random numbers as pure functions of named integers; the global generators are never touched.

`rng_for(seed, example, view)` keeps its numbers apart: they are hashed, not added, so neighbouring seeds do not meet.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def stream_key(*stream: int | str) -> int:
    """A 128-bit key from a stream's names and numbers; (1, 23) and (12, 3) differ, and so do (1,) and (1, 0)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in stream)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def rng_for(*stream: int | str) -> np.random.Generator:
    """A numpy generator (Philox, counter-based) that depends on `stream` alone."""
    return np.random.Generator(np.random.Philox(key=stream_key(*stream)))


def torch_seed_for(*stream: int | str) -> int:
    """A seed in [0, 2**63) for `torch.Generator.manual_seed`, a pure function of `stream`."""
    return stream_key("torch", *stream) >> 65


# Philox4x32-10 of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", doi 10.1145/2063384.2063405.
_PHILOX_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW_32 = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counters: NDArray[np.uint32], key: int) -> NDArray[np.uint32]:
    """Philox4x32-10 over many counters at once: 128 random bits per counter, a pure function of (counter, key).

    numpy's own Philox walks one counter and cannot be asked for row 17 without a generator per row; this one can.

    Args:
        counters: (4, ...) uint32, the counter's words, lowest first.
        key: 64 bits, lowest word first.

    Returns:
        uint32 of the shape of `counters`; equal counters give equal words whatever their neighbours are.

    Source: Salmon et al. 2011, doi 10.1145/2063384.2063405; tested with the known-answer vectors of Random123.
    """
    c0, c1, c2, c3 = counters.astype(np.uint64)
    key0, key1 = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    for _ in range(10):
        low = _PHILOX_MULTIPLIERS[0] * c0
        high = _PHILOX_MULTIPLIERS[1] * c2
        c0, c2 = (high >> _HALF) ^ c1 ^ np.uint64(key0), (low >> _HALF) ^ c3 ^ np.uint64(key1)
        c1, c3 = high & _LOW_32, low & _LOW_32
        key0, key1 = key0 + _PHILOX_WEYL[0] & 0xFFFFFFFF, key1 + _PHILOX_WEYL[1] & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3)).astype(np.uint32)


def unit_interval(words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Random words as numbers in [0, 1), exact multiples of 2**-32; same shape as `words`."""
    return words.astype(np.float64) * 2.0**-32


def below(words: NDArray[np.uint32], limit: NDArray[np.integer] | int) -> NDArray[np.int64]:
    """Random words as integers in [0, limit), by multiply and shift.

    The most and the least likely value differ by at most limit * 2**-32 in relative probability (1e-5 at 50,000
    rows, 3e-4 at ImageNet's 1.3 million): far under what V views could show, and no rejection loop is needed.

    Args:
        words: uint32 of any shape.
        limit: integers in [1, 2**32), one for all or broadcastable to `words`.
    """
    product = words.astype(np.uint64) * np.asarray(limit).astype(np.uint64)
    return (product >> _HALF).astype(np.int64)
