"""Tokenised corpora in one NPZ file: `SPLIT_tokens`, and if there are several sequences `SPLIT_lengths`.

For any tokeniser: run it once, keep the ids. `SPLIT_mask`, where there is one, says which tokens count when they are
predicted (an instruction's prompt does not). Numbers only, no pickled objects.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdcache.datasets.npz import read_arrays
from kdcache.datasets.sequences import TokenSource
from kdcache.errors import IncompatibleError
from kdcache.nearest import did_you_mean


def open_token_file(path: Path, *, name: str, split: str, num_classes: int) -> TokenSource:
    """Read one split of a token file.

    Args:
        path: the NPZ file: SPLIT_tokens (M,) whole numbers, SPLIT_lengths (S,) tokens of each sequence (absent: one
            sequence), SPLIT_mask (M,) bool or 0 and 1 (absent: every token counts).
        name, split: as in the data card; the arrays are named after the split.
        num_classes: vocabulary size, or 0: as `vocab_size` in the file says, else the largest id of any split and one.

    Raises:
        NotFoundError: no such file.
        IncompatibleError: not an NPZ file, arrays missing or of a wrong shape.
    """
    arrays = read_arrays(path)
    if f"{split}_tokens" not in arrays:
        raise IncompatibleError(f"{path}: no array '{split}_tokens'", hint=did_you_mean(f"{split}_tokens", arrays))
    tokens = arrays[f"{split}_tokens"]
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise IncompatibleError(
            f"{path}: expected whole numbers {split}_tokens (M,), found {tokens.dtype} {tokens.shape}"
        )
    size = num_classes or int(np.asarray(arrays.get("vocab_size", 0)).reshape(-1)[0])
    if not size:
        size = 1 + max(int(value.max()) for key, value in arrays.items() if key.endswith("_tokens") and value.size)
    mask = arrays.get(f"{split}_mask")
    return TokenSource.from_tokens(
        tokens,
        arrays.get(f"{split}_lengths"),
        name=name,
        split=split,
        num_classes=size,
        mask=None if mask is None else mask.astype(np.bool_),
    )
