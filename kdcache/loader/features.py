"""Feature columns of a store by row number, beside the soft targets: verified once, resident or memory-mapped.

Only the feature arrays of the views in use are kept, and only once somebody asked for a feature.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.errors import IncompatibleError
from kdcache.store.features import FeatureColumn, feature_columns, feature_named
from kdcache.store.layout import is_feature
from kdcache.store.reader import StoreReader, ViewColumns


class FeatureTables:
    """The feature arrays of at most `views` views of an open store. Safe to share between threads.

    Args:
        reader: an open, sealed store.
        views: how many views' features may be in memory.
    """

    def __init__(self, reader: StoreReader, *, views: int) -> None:
        self._reader = reader
        self._most = views
        self._held: OrderedDict[int, dict[str, NDArray[np.floating]]] = OrderedDict()
        self._wanted = False
        self._lock = threading.RLock()

    @property
    def columns(self) -> tuple[FeatureColumn, ...]:
        """The feature arrays the store holds."""
        return feature_columns(self._reader.manifest)

    def gather(self, name: str, rows: NDArray[np.int64], view: int) -> Tensor:
        """(B, ...) float32 on the CPU; float16 values are widened exactly.

        Raises:
            IncompatibleError: the store has no such feature. Damage as `StoreReader.view`.
        """
        column = feature_named(self._reader.manifest, name)
        if column is None:
            have = ", ".join(column.name for column in self.columns) or "none"
            raise IncompatibleError(
                f"{self._reader.location}: the store has no feature {name!r}; it holds {have}",
                hint=f"kdcache dump-teacher --features {name} keeps it",
            )
        return torch.from_numpy(np.take(self._arrays(view)[column.field], rows, axis=0).astype(np.float32, copy=False))

    def offer(self, columns: ViewColumns) -> None:
        """Take the features of a view that is decoded anyway, if features are in use; saves decoding it twice."""
        with self._lock:
            if self._wanted:
                self._keep(columns)

    def _arrays(self, view: int) -> dict[str, NDArray[np.floating]]:
        with self._lock:
            self._wanted = True
            if view not in self._held:
                self._keep(self._reader.view(view))
            self._held.move_to_end(view)
            return self._held[view]

    def _keep(self, columns: ViewColumns) -> None:
        while len(self._held) >= self._most and columns.view not in self._held:
            self._held.popitem(last=False)
        self._held[columns.view] = {name: values for name, values in columns.optional.items() if is_feature(name)}
