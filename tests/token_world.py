"""A small corpus that a language model can learn, as files: sequences of a Markov chain, a mask, a teacher's file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 40
LENGTHS = {"train": (700, 3, 2, 150, 401), "test": (120, 2, 80)}

TEACHER = '''
"""A causal teacher of token rows: sums of embeddings so far; `stopped` is interrupted once, in the middle."""

import os

import torch
from torch import nn


class Sums(nn.Module):
    def __init__(self, classes):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.embedding = nn.Embedding.from_pretrained(torch.randn(classes, 16, generator=generator))
        self.out = nn.Linear(16, classes)
        with torch.no_grad():
            self.out.weight.copy_(torch.randn(classes, 16, generator=generator))
            self.out.bias.zero_()
        self.calls = 0
        self.stops = False

    def forward(self, tokens):
        self.calls += 1
        if self.stops and self.calls > 14 and not os.environ.get("KDCACHE_TEST_CALM"):
            raise KeyboardInterrupt
        return self.out(torch.tanh(self.embedding(tokens)).cumsum(dim=1))


def sums(num_classes, input_shape):
    assert input_shape == ()
    return Sums(num_classes), None.__class__


def stopped(num_classes, input_shape):
    module = Sums(num_classes)
    module.stops = True
    return module, None.__class__


class Pooled(Sums):
    def forward(self, tokens):
        return super().forward(tokens).mean(dim=1)


def pooled(num_classes, input_shape):
    return Pooled(num_classes), None.__class__
'''


def chain(length: int, *, seed: int, vocabulary: int = VOCABULARY) -> NDArray[np.int64]:
    """(length,) tokens: a step of 1, 2 or 3 around the circle of ids, which step most often depending on the token."""
    rng = np.random.default_rng(seed)
    steps = np.where(rng.random(length) < 0.8, 1, rng.integers(1, 4, length))
    tokens = np.zeros(length, dtype=np.int64)
    tokens[0] = rng.integers(vocabulary)
    for place in range(1, length):
        tokens[place] = (tokens[place - 1] + steps[place] * (1 + tokens[place - 1] % 3)) % vocabulary
    return tokens


def make_token_world(folder: Path, *, masked: bool = False) -> Path:
    """Write `corpus.npz` and `teachers.py`; the NPZ file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, NDArray[np.generic]] = {"vocab_size": np.array(VOCABULARY)}
    for number, (split, lengths) in enumerate(LENGTHS.items()):
        parts = [chain(length, seed=100 * number + part) for part, length in enumerate(lengths)]
        arrays[f"{split}_tokens"] = np.concatenate(parts)
        arrays[f"{split}_lengths"] = np.array(lengths)
        if masked:
            arrays[f"{split}_mask"] = np.arange(sum(lengths)) % 5 != 0
    path = folder / "corpus.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    (folder / "teachers.py").write_text(TEACHER)
    return path
