"""Seeded logits that look like an ImageNet teacher's: confusable classes are correlated, rows differ in difficulty.

A class vector is the sum of its group's, its subgroup's and its own part, so the runners-up of a row are mostly its
relatives; a row is its class vector plus noise, seen through a linear layer, at a temperature of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GROUPS = 25
SUBGROUPS = 8  # per group: 200 families of 5 at K = 1000
WIDTH = 256


@dataclass(frozen=True)
class LogitGenerator:
    """A teacher of K classes that exists only as numbers; `batch` is a pure function of (seed, start)."""

    num_classes: int = 1000
    seed: int = 0
    noise: float = 3.0
    scale: float = 14.0
    spread: float = 0.45

    def class_vectors(self) -> NDArray[np.float32]:
        """(K, D) float32 unit vectors."""
        rng = np.random.Generator(np.random.Philox(key=self.seed))
        groups = rng.standard_normal((GROUPS, WIDTH))
        subgroups = rng.standard_normal((GROUPS * SUBGROUPS, WIDTH))
        own = rng.standard_normal((self.num_classes, WIDTH))
        family = np.arange(self.num_classes) * GROUPS * SUBGROUPS // self.num_classes
        vectors = np.sqrt(0.25) * groups[family // SUBGROUPS] + np.sqrt(0.30) * subgroups[family] + np.sqrt(0.45) * own
        unit: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        return unit

    def batch(
        self, vectors: NDArray[np.float32], start: int, rows: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Logits (rows, K) float32 and labels (rows,) int64 in random class order, as a shuffled data set has them."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed + 1, start]))
        labels = rng.integers(self.num_classes, size=rows)
        noise = rng.standard_normal((rows, WIDTH)).astype(np.float32) * np.float32(self.noise / np.sqrt(WIDTH))
        difficulty = np.exp(self.spread * rng.standard_normal((rows, 1))).astype(np.float32)
        features = vectors[labels] + noise * difficulty
        sharpness = np.float32(self.scale) * np.exp(0.25 * rng.standard_normal((rows, 1))).astype(np.float32)
        return sharpness * (features @ vectors.T), labels
