"""Small pictures of some rows of a data set, inside the page, after checking that the rows are the store's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcache.datasets.identity import row_digests
from kdcache.datasets.source import DataSource
from kdcache.errors import IncompatibleError
from kdcache.html.heatmap import png_data
from kdcache.html.markup import Html, element
from kdcache.stats.figures import Contradiction

SIDE = 160  # pixels; larger examples are scaled down, so that 20 of them stay under 1 MB
SMALL = 64  # below it pixels are shown as squares


def thumbnails(source: DataSource, items: Sequence[Contradiction]) -> dict[int, Html]:
    """Pictures by row number; empty when the examples are not images.

    Raises:
        IncompatibleError: the data set has other rows than the store.
    """
    rows = [item.row for item in items]
    beyond = [row for row in rows if row >= len(source)]
    if beyond:
        raise _other(source, f"the store has row {beyond[0]}, the data set {len(source)} rows")
    for item, digest in zip(items, row_digests(source, rows).tolist(), strict=True):
        label = int(source.labels[item.row])
        if label != item.label:
            raise _other(source, f"label of row {item.row} is {label}, the store says {item.label}")
        if source.identity != "weak" and digest != item.row_digest:
            raise _other(source, f"row {item.row} is another example (its raw digest differs)")
    shown = {}
    for item in items:
        pixels = _pixels(source.example(item.row))
        if pixels is None:
            return {}
        alt = f"row {item.row}, labelled {item.label_name}, the teacher says {item.predicted_name}"
        small = "small" if max(pixels.shape[:2]) < SMALL else None
        shown[item.row] = element("img", {"src": png_data(pixels), "alt": alt, "class": small})
    return shown


def _pixels(example: NDArray[Any]) -> NDArray[np.uint8] | None:
    """(h, w) or (h, w, 3) uint8 of at most 160 pixels a side; None when the example is no image."""
    if example.dtype != np.uint8 or example.ndim != 3 or example.shape[2] not in (1, 3):
        return None
    image = Image.fromarray(example[:, :, 0] if example.shape[2] == 1 else example)
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image)


def _other(source: DataSource, what: str) -> IncompatibleError:
    return IncompatibleError(
        f"data set {source.name!r} split {source.split!r} is not the store's: {what}",
        hint="give the data set the store was made from with --dataset and --data-root",
    )
