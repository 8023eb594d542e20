"""Makes a golden store of format 1: `python -m tests.golden.make_golden FOLDER [TAIL_NUMBERS]`. Run once, then kept."""

from __future__ import annotations

import sys
from pathlib import Path

from kdcache.specs import StoreManifest
from tests.store_cases import manifest_of, write_store

FIELDS = ("class_bias", "class_weight", "view_params")
SHAPES = {"class_weight": [300, 4], "class_bias": [300], "view_params": [6]}


def golden_manifest(tail_numbers: int = 3) -> StoreManifest:
    """300 rows, 2 views, K = 300, k = 5, with everything an image store of augmented views holds."""
    return manifest_of(rows=300, views=2, fields=FIELDS, shapes=SHAPES, tail_numbers=tail_numbers)


if __name__ == "__main__":
    write_store(Path(sys.argv[1]), golden_manifest(*map(int, sys.argv[2:3])))
