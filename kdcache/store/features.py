"""The feature arrays of a store as people are told about them: type, shape, bytes. Pure arithmetic; reads nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kdcache.specs import StoreManifest
from kdcache.store.layout import is_feature, layout_of


@dataclass(frozen=True, kw_only=True)
class FeatureColumn:
    """One feature array.

    Attributes:
        field: "features/NAME" or "features32/NAME".
        dtype: "float16" or "float32".
        shape: of one row's values.
        row_bytes: bytes of one row of one view, uncompressed.
        bytes: of all rows and views, uncompressed; activations compress little.
    """

    field: str
    dtype: str
    shape: tuple[int, ...]
    row_bytes: int
    bytes: int

    @property
    def name(self) -> str:
        """NAME, as the loader takes it."""
        return self.field.partition("/")[2]

    def __str__(self) -> str:
        axes = " x ".join(map(str, self.shape))
        return f"{self.field}: {axes} {self.dtype}, {self.row_bytes:,} bytes per row and view, {self.bytes:,} in all"


def feature_columns(manifest: StoreManifest) -> tuple[FeatureColumn, ...]:
    """The feature arrays of a store, by field."""
    columns = []
    for field, array in layout_of(manifest).items():
        if not is_feature(field):
            continue
        row = math.prod(array.row_shape) * array.dtype.itemsize
        cells = manifest.dataset.num_rows * manifest.num_views
        columns.append(
            FeatureColumn(field=field, dtype=array.dtype.name, shape=array.row_shape, row_bytes=row, bytes=row * cells)
        )
    return tuple(columns)


def feature_named(manifest: StoreManifest, name: str) -> FeatureColumn | None:
    """The feature array that a name means, the finer one where there are two; None when the store has none.

    Args:
        manifest: of the store.
        name: NAME ("penultimate"; dots may be underscores) or the whole field ("features32/penultimate").
    """
    plain = name.replace(".", "_")
    same = [column for column in feature_columns(manifest) if plain in (column.name, column.field)]
    return max(same, key=lambda column: column.dtype == "float32", default=None)
