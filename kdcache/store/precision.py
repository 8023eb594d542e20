"""How finely log-probabilities are kept: float16 with its 10 mantissa bits, or fewer of them. Pure numpy.

Rounding is to nearest, ties away from zero, and monotone, so descending rows stay descending and log p <= 0 stays so.
The bits that are left are what the compressor has to store; docs/store-format.md has the error of each precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

MANTISSA_BITS: Mapping[str, int] = {"exact": 10, "default": 6, "compact": 4}
_HALF_BITS = 10
_LOWEST = np.float32(-65504.0)  # float16's largest finite magnitude: e**-65504 is 0 at any use


def round_half(values: NDArray[np.floating[Any]], precision: str) -> NDArray[np.float16]:
    """Round to float16 with the precision's mantissa bits.

    Args:
        values: any shape, float32; -inf stays, finite values are clamped to float16's range.
        precision: "exact", "default" or "compact".

    Returns:
        float16 of the same shape. -0.0 becomes 0.0, so that equal numbers have equal bytes.
    """
    wide = np.asarray(values, dtype=np.float32)
    clamped = np.where(np.isneginf(wide), wide, np.clip(wide, _LOWEST, -_LOWEST))
    half = clamped.astype("<f2") + np.float16(0)
    drop = _HALF_BITS - MANTISSA_BITS[precision]
    if drop == 0:
        return half
    bits = half.view(np.uint16).astype(np.int32)
    magnitude = bits & 0x7FFF
    rounded = (magnitude + (1 << (drop - 1))) >> drop << drop
    largest = 0x7C00 - (1 << drop)  # rounding up must not reach infinity
    rounded = np.where(magnitude >= 0x7C00, magnitude, np.minimum(rounded, largest))
    sign = np.where(rounded == 0, 0, bits & 0x8000)
    result: NDArray[np.float16] = (sign | rounded).astype(np.uint16).view("<f2")
    return result
