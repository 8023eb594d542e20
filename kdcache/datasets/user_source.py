"""Data from the user's own code: `file.py:factory` returning a `DataSource` or any map-style data set.

    def factory(split: str, root: Path | None) -> DataSource | Sequence[tuple[example, label]]

A map-style data set has already transformed its examples, so only labels and length can be checked: identity "weak".
No torch here; tensors are recognised by their `numpy` method.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.datasets.source import DataSource
from kdcache.errors import ConfigError
from kdcache.user_code import UserFactory

LABEL_ATTRIBUTES = ("targets", "labels")
COMPARED = 16  # items whose labels are compared with the list's


class MapStyleSource:
    """A map-style data set of (example, label) as a source of weak identity.

    Args:
        dataset: has `__len__` and `__getitem__`; labels are read from `.targets` or `.labels` (through its
            `target_transform`) where there is one as long as the data set that agrees with a few items, else by walking
            over it once.
        name: data set name.
        split: split name.
    """

    identity = "weak"

    def __init__(self, dataset: Any, *, name: str, split: str) -> None:
        self.dataset = dataset
        self.name = name
        self.split = split
        self.labels: NDArray[np.int64] = _labels(dataset)
        classes = getattr(dataset, "classes", None)
        self.class_names: tuple[str, ...] = tuple(map(str, classes)) if isinstance(classes, list | tuple) else ()
        declared = getattr(dataset, "num_classes", None)
        largest = int(self.labels.max()) + 1 if len(self.labels) else 0
        self.num_classes: int = declared if isinstance(declared, int) else len(self.class_names) or largest

    def __len__(self) -> int:
        return len(self.dataset)

    def raw(self, row: int) -> bytes:
        """The bytes of the example as the data set hands it out; it may differ from one call to the next."""
        return self.example(row).tobytes()

    def example(self, row: int) -> NDArray[np.generic]:
        """The example as an array: PIL images become uint8 (H, W, 3), tensors and arrays keep dtype and shape."""
        return _as_array(self.dataset[row][0])


def open_user_source(factory: UserFactory, *, split: str, root: Path | None) -> DataSource:
    """Call a user's factory and check what it returned.

    Raises:
        ConfigError: it raised, or returned neither a data source nor a map-style data set.
    """
    made = factory.call(split, root)
    if isinstance(made, DataSource):
        return made
    if not (hasattr(made, "__len__") and hasattr(made, "__getitem__")):
        raise ConfigError(
            f"{factory.path}:{factory.function}: expected a DataSource or a map-style data set of (example, label), "
            f"found {type(made).__name__}",
            hint="def factory(split, root): return a data set with __len__ and __getitem__",
        )
    if len(made) and not (isinstance(made[0], tuple | list) and len(made[0]) == 2):
        raise ConfigError(f"{factory.path}:{factory.function}: expected items (example, label), found {made[0]!r:.80}")
    return MapStyleSource(made, name=factory.path.stem, split=split)


def _labels(dataset: Any) -> NDArray[np.int64]:
    """The labels of the items. A list of them is the quick way, where it says what the items say."""
    change = getattr(dataset, "target_transform", None)  # torchvision's: of the items, not of the list
    for attribute in LABEL_ATTRIBUTES:
        values = getattr(dataset, attribute, None)
        if values is not None and hasattr(values, "__len__") and len(values) == len(dataset):
            listed = np.asarray([int(change(value)) for value in values] if callable(change) else values, np.int64)
            some = range(0, len(listed), max(1, len(listed) // COMPARED))
            if all(int(dataset[row][1]) == listed[row] for row in some):
                return listed
    return np.asarray([int(dataset[row][1]) for row in range(len(dataset))], dtype=np.int64)


def _as_array(example: Any) -> NDArray[np.generic]:
    if hasattr(example, "convert"):
        return np.asarray(example.convert("RGB"))
    if hasattr(example, "numpy"):
        array: NDArray[np.generic] = example.numpy()
        return array
    return np.asarray(example)
