"""A square heat map: a PNG inside the page, with values under the pointer and the arrow keys."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcache.html.markup import Attributes, Html, element

# From the paper's white over blues to navy; in the dark the style sheet turns it round. Interpolated to 256 steps.
_RAMP = ((255, 255, 255), (207, 227, 245), (125, 180, 224), (47, 111, 190), (11, 31, 75))
LARGEST_SIDE = 256  # more cells than that are smaller than a pixel of the page


def png_data(pixels: NDArray[np.uint8]) -> str:
    """A data URI of an image (H, W), (H, W, 3) or (H, W, 4) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def heat_map(values: NDArray[np.floating], names: Sequence[str], *, what: str, rows: str, columns: str) -> Html:
    """Shares in (0, 1] on a logarithmic scale of colour.

    Args:
        values: (K, K), row and column in the order to show them; above 256 classes neighbours are averaged.
        names: K names in the same order.
        what: what a cell is, for screen readers.
        rows: what a row is, written beside the map; columns: what a column is.
    """
    values, shown = _reduced(values, names)
    low, high = -4.0, 0.0  # one in ten thousand to certain
    scaled = (np.log10(np.maximum(values, 10.0**low)) - low) / (high - low)
    levels = np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
    image: Attributes = {
        "src": png_data(palette()[levels]),
        "alt": f"{what}; arrow keys read the values",
        "tabindex": 0,
        "width": 640,
        "height": 640,
    }
    data: Attributes = {
        "class": "heat",
        "data-names": json.dumps(shown),
        "data-values": base64.b64encode(levels.tobytes()).decode(),
        "data-low": low,
        "data-high": high,
    }
    body = element(
        "div",
        data,
        element("img", image),
        element("div", {"class": "cell", "hidden": True}),
        element("p", {"class": "edge"}, f"down: {rows} · across: {columns}"),
    )
    ends = element("div", {"class": "ramp-ends"}, element("span", {}, "0.01 % or less"), element("span", {}, "100 %"))
    return element("div", {}, body, element("div", {"class": "ramp", "aria-hidden": "true"}), ends)


def _reduced(values: NDArray[np.floating], names: Sequence[str]) -> tuple[NDArray[np.floating], list[str]]:
    classes = len(values)
    if classes <= LARGEST_SIDE:
        return values, list(names)
    edges = np.linspace(0, classes, LARGEST_SIDE + 1).astype(np.int64)[:-1]
    counts = np.diff([*edges, classes])
    total = np.add.reduceat(np.add.reduceat(values, edges, axis=0), edges, axis=1)
    shown = [names[i] + (f" and {n - 1} more" if n > 1 else "") for i, n in zip(edges, counts, strict=True)]
    return total / counts[:, None] / counts[None, :], shown


def palette() -> NDArray[np.uint8]:
    """(256, 3) uint8: the colours of a scale, from nothing to everything."""
    stops = np.linspace(0, 255, len(_RAMP))
    channels = [np.interp(np.arange(256), stops, [colour[i] for colour in _RAMP]) for i in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)
