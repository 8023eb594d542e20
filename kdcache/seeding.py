"""Random numbers as pure functions of named integers; the global generators are never touched.

`rng_for(seed, example, view)` keeps its numbers apart: they are hashed, not added, so neighbouring seeds do not meet.
"""

from __future__ import annotations

import hashlib

import numpy as np


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
