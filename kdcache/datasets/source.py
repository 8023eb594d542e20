"""What a data set must offer: raw bytes for identity, labels for order, examples for models. No torch.

`ArraySource` holds everything in memory (CIFAR, NPZ, the sample); file-backed sources live in `files.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class DataSource(Protocol):
    """A finite, ordered set of labelled examples.

    Attributes:
        name: data set name, as in its card.
        split: "train", "test", ...
        num_classes: K.
        class_names: K names, or empty.
        labels: (N,) int64, all labels, cheap to read.
        identity: "full" when `raw` gives the bytes before any transform, else "weak".
    """

    name: str
    split: str
    num_classes: int
    class_names: tuple[str, ...]
    labels: NDArray[np.int64]
    identity: str

    def __len__(self) -> int: ...

    def raw(self, row: int) -> bytes:
        """The example's bytes before any transform: the file where there is one, else pixels or numbers."""
        ...

    def example(self, row: int) -> NDArray[np.generic]:
        """The decoded example: uint8 (H, W, C) for images, else float32 or int64 of any shape."""
        ...


class ArraySource:
    """Examples held in one array: (N, H, W, C) uint8 images, or (N, ...) float32 or int64."""

    identity = "full"

    def __init__(
        self,
        examples: NDArray[np.generic],
        labels: NDArray[np.integer],
        *,
        name: str,
        split: str,
        num_classes: int,
        class_names: Sequence[str] = (),
    ) -> None:
        self.examples = np.ascontiguousarray(examples)
        self.labels: NDArray[np.int64] = np.ascontiguousarray(labels, dtype=np.int64)
        self.name = name
        self.split = split
        self.num_classes = num_classes
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return len(self.examples)

    def raw(self, row: int) -> bytes:
        """The row's numbers as bytes, C order, little endian."""
        raw: bytes = self.examples[row].tobytes()
        return raw

    def example(self, row: int) -> NDArray[np.generic]:
        """A view of the row."""
        row_view: NDArray[np.generic] = self.examples[row]
        return row_view


def input_shape(source: DataSource) -> tuple[int, ...]:
    """The shape a model sees of a source's first example: (C, H, W) for images, as it is for numbers and tokens."""
    example = source.example(0)
    if example.dtype == np.uint8 and example.ndim == 3:
        height, width, channels = example.shape
        return (channels, height, width)
    return tuple(example.shape)
