"""Sums by name, which is all that a block of a store leaves behind: made block by block, added in the order of rows.

Every order of blocks and every number of workers therefore gives the same figures, bit for bit.
"""

from __future__ import annotations

from torch import Tensor

Sums = dict[str, Tensor]  # float64; counts stay exact up to 2^53


def add_sums(total: Sums, part: Sums) -> None:
    """Add the sums of one more block to those of the blocks before it, in place."""
    for name, values in part.items():
        total[name] += values
