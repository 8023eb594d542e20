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
_SIGN, _INFINITE = 0x8000, 0x7C00  # float16's sign bit and the bits of infinity; above it are the NaNs


def round_half(values: NDArray[np.floating[Any]], precision: str) -> NDArray[np.float16]:
    """Round to float16 with the precision's mantissa bits.

    Args:
        values: any shape, float32; -inf stays, finite values are clamped to float16's range.
        precision: "exact", "default" or "compact".

    Returns:
        float16 of the same shape. -0.0 becomes 0.0, so that equal numbers have equal bytes.
    """
    wide = np.asarray(values, dtype=np.float32)
    with np.errstate(over="ignore"):  # what overflows is clamped below
        half = wide.astype("<f2", order="C")
    bits = half.view(np.uint16)  # whole numbers of two bytes: numpy's float16 and int32 arithmetic costs 3 times this
    magnitude = bits & np.uint16(_INFINITE | 0x3FF)
    if magnitude.size and magnitude.max() >= _INFINITE:
        special = magnitude >= _INFINITE
        bits[special & ~(np.isneginf(wide) | np.isnan(wide))] -= np.uint16(1)  # the largest number of that sign
        magnitude = bits & np.uint16(_INFINITE | 0x3FF)
        special = magnitude >= _INFINITE
    else:
        special = None
    drop = _HALF_BITS - MANTISSA_BITS[precision]
    if drop:
        rounded = (magnitude + np.uint16(1 << (drop - 1))) & np.uint16(0xFFFF - (1 << drop) + 1)
        largest = np.uint16(_INFINITE - (1 << drop))  # rounding up must not reach infinity
        finite = np.minimum(rounded, largest)
        magnitude = finite if special is None else np.where(special, magnitude, finite)
    bits &= np.uint16(_SIGN)
    bits *= magnitude != 0  # no -0.0
    bits |= magnitude
    result: NDArray[np.float16] = half
    return result
