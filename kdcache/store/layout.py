"""Format 1 as a pure function of the manifest: which arrays there are, their shapes, types, chunks and codecs.

The reader derives all of it from here and compares what lies on disk; nothing on disk is believed before it matches.
No bytes are read or written in this module. The normative text is docs/store-format.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kdcache.errors import ConfigError, HostileStoreError
from kdcache.specs import StoreManifest

Kind = Literal["view_rows", "rows", "static", "commit"]
Packing = Literal["plain", "zstd", "bits", "bytes"]
DIGEST_BYTES = 32
MAX_CHUNK_BYTES = 2**31 - 1 - 4096  # the largest buffer every Zarr engine's codecs take
STATIC_CHUNK_BYTES = 64 * 2**20
MAX_AXIS = 2**48  # a row count no data set reaches; products of axes stay far below 2**63 bytes by the next limit
MAX_VIEWS = 2**20

REQUIRED = ("label", "label_log_prob", "row_digest", "tail", "topk_index", "topk_log_prob")
OPTIONAL_VIEW_ROWS: Mapping[str, str] = {  # field -> dtype; "class" is the store's class dtype
    "partner_label_log_prob": "float16",
    "sample_count": "uint16",
    "sample_index": "class",
    "view_params": "uint8",
}
OPTIONAL_ROWS: Mapping[str, str] = {"mask": "uint8"}
STATIC: Mapping[str, str] = {
    "class_bias": "float32",
    "class_mean": "float32",
    "class_similarity": "float32",
    "class_weight": "float32",
    "sequence_offsets": "int64",
}
FEATURE_TYPES: Mapping[str, str] = {"features/": "float16", "features32/": "float32"}  # prefix of the name -> dtype


@dataclass(frozen=True)
class ArrayLayout:
    """One array of a store.

    Attributes:
        name: path of the array's folder under the store.
        kind: "view_rows" (V, N, ...), "rows" (N,), "static" (any shape, once per store) or "commit".
        shape: of the whole array.
        chunk_shape: of one chunk; edge chunks are padded with the fill value.
        dtype: numpy type, little endian.
        axes: dimension names.
        packing: how chunks are compressed: "plain" not at all, "zstd" as they are, "bits" and "bytes" by zstd after a
            bit or byte shuffle (blosc). The choice per array was measured: benchmarks/size.py.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axes: tuple[str, ...]
    packing: Packing = "zstd"

    @property
    def fill_value(self) -> int | str:
        """An impossible value, so that a missing chunk is loud: the type's maximum, or NaN."""
        return "NaN" if self.dtype.kind == "f" else int(np.iinfo(self.dtype).max)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one decoded chunk."""
        return math.prod(self.chunk_shape) * self.dtype.itemsize

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row's values (view_rows and rows only)."""
        return self.shape[2:] if self.kind == "view_rows" else self.shape[1:]

    def chunk_path(self, *position: int) -> str:
        """Path of a chunk file under the store."""
        return "/".join([self.name, "c", *map(str, position)])

    def block_chunk_path(self, view: int, block: int) -> str:
        """Path of the one chunk that holds a block's rows."""
        position = (view, block) if self.kind == "view_rows" else (block,)
        return self.chunk_path(*position, *(0 for _ in self.row_shape))

    def codecs(self) -> list[dict[str, Any]]:
        """The codec chain: bytes, [zstd or blosc], crc32c; the checksum is outermost."""
        endian = {} if self.dtype.itemsize == 1 else {"configuration": {"endian": "little"}}
        chain: list[dict[str, Any]] = [{"name": "bytes", **endian}]
        if self.packing == "zstd":
            chain.append({"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}})
        elif self.packing != "plain":
            shuffle, level = BLOSC[self.packing]
            # One blosc block per chunk: its frame then has one possible layout, which `chunks` checks before decoding.
            blosc = {"typesize": self.dtype.itemsize, "cname": "zstd", "clevel": level, "shuffle": shuffle}
            chain.append({"name": "blosc", "configuration": {**blosc, "blocksize": self.chunk_bytes}})
        chain.append({"name": "crc32c"})
        return chain

    def metadata(self) -> dict[str, Any]:
        """The array's zarr.json."""
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.chunk_shape)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": self.fill_value,
            "codecs": self.codecs(),
            "dimension_names": list(self.axes),
            "attributes": {},
        }


ZSTD_LEVEL = 3
BLOSC: Mapping[str, tuple[str, int]] = {"bits": ("bitshuffle", 3), "bytes": ("shuffle", 4)}  # shuffle, level


def class_dtype(num_classes: int) -> np.dtype[Any]:
    """The smallest unsigned type whose maximum is never a class of K."""
    if num_classes <= 255:
        return np.dtype("uint8")
    return np.dtype("<u2") if num_classes <= 65_535 else np.dtype("<u4")


def layout_of(manifest: StoreManifest) -> dict[str, ArrayLayout]:
    """Every array of a store, `commit` included, sorted by name.

    Raises:
        ConfigError: an unknown field, or one whose size the manifest does not state.
        HostileStoreError: sizes no format-1 store has.
    """
    data, codec = manifest.dataset, manifest.codec
    num_rows, index_type = data.num_rows, class_dtype(data.num_classes)
    if num_rows > MAX_AXIS or manifest.num_views > MAX_VIEWS or not 1 <= manifest.block_rows <= 65_536:
        raise HostileStoreError(
            f"store of {num_rows} rows, {manifest.num_views} views, {manifest.block_rows} rows a block:"
            f" expected at most {MAX_AXIS}, {MAX_VIEWS} and 65536"
        )
    half = np.dtype("<f2")
    arrays = [
        _view_rows(manifest, "topk_index", (codec.topk,), index_type),
        _view_rows(manifest, "topk_log_prob", (codec.topk,), half),
        _view_rows(manifest, "tail", (codec.tail_numbers,), half),
        _view_rows(manifest, "label_log_prob", (), half),
        _rows(manifest, "label", index_type),
        _rows(manifest, "row_digest", np.dtype("<u2")),
    ]
    if len(set(codec.fields)) != len(codec.fields):
        raise ConfigError(f"fields: a name appears twice in {', '.join(codec.fields)}")
    arrays += [_optional(manifest, name, index_type) for name in codec.fields]
    arrays.append(_commit(manifest))
    for array in arrays:
        if array.chunk_bytes > MAX_CHUNK_BYTES:
            raise HostileStoreError(
                f"array {array.name!r}: a chunk of {array.chunk_bytes} bytes; expected at most {MAX_CHUNK_BYTES}"
            )
    return {array.name: array for array in sorted(arrays, key=lambda array: array.name)}


def block_arrays(layout: Mapping[str, ArrayLayout], view: int) -> list[ArrayLayout]:
    """The arrays a block of this view covers, by name: those with a view axis, and for view 0 those without."""
    kinds = ("view_rows", "rows") if view == 0 else ("view_rows",)
    return [array for array in layout.values() if array.kind in kinds]


def static_arrays(layout: Mapping[str, ArrayLayout]) -> list[ArrayLayout]:
    """The store-level arrays, by name."""
    return [array for array in layout.values() if array.kind == "static"]


def row_bytes(layout: Mapping[str, ArrayLayout]) -> int:
    """Bytes of one row of one view, uncompressed, the arrays without a view axis included."""
    rows = [array for array in layout.values() if array.kind in ("view_rows", "rows")]
    return sum(math.prod(array.row_shape) * array.dtype.itemsize for array in rows)


def _view_rows(manifest: StoreManifest, name: str, row: tuple[int, ...], dtype: np.dtype[Any]) -> ArrayLayout:
    return ArrayLayout(
        name=name,
        kind="view_rows",
        shape=(manifest.num_views, manifest.dataset.num_rows, *row),
        chunk_shape=(1, manifest.block_rows, *row),
        dtype=dtype,
        axes=("view", "row", *(f"column{i}" if i else "column" for i in range(len(row)))),
        packing=_packing(dtype, columns=bool(row)),
    )


def _rows(manifest: StoreManifest, name: str, dtype: np.dtype[Any]) -> ArrayLayout:
    return ArrayLayout(
        name=name,
        kind="rows",
        shape=(manifest.dataset.num_rows,),
        chunk_shape=(manifest.block_rows,),
        dtype=dtype,
        axes=("row",),
        packing="plain" if name == "row_digest" else _packing(dtype, columns=False),  # digests are noise
    )


def _packing(dtype: np.dtype[Any], *, columns: bool) -> Packing:
    """Class numbers use few of their bits; neighbouring columns of rounded floats share their high bytes."""
    if dtype.itemsize == 1:
        return "zstd"
    return "bytes" if dtype.kind == "f" and columns else "bits"


def _optional(manifest: StoreManifest, name: str, index_type: np.dtype[Any]) -> ArrayLayout:
    def dtype_of(word: str) -> np.dtype[Any]:
        return index_type if word == "class" else np.dtype(word).newbyteorder("<")

    if name in OPTIONAL_ROWS:
        return _rows(manifest, name, dtype_of(OPTIONAL_ROWS[name]))
    if name == "partner_label_log_prob":
        return _view_rows(manifest, name, (), np.dtype("<f2"))
    if name in OPTIONAL_VIEW_ROWS:
        return _view_rows(manifest, name, _stated_shape(manifest, name, 1, 1), dtype_of(OPTIONAL_VIEW_ROWS[name]))
    if is_feature(name):
        return _view_rows(manifest, name, _stated_shape(manifest, name, 1, 3), dtype_of(feature_type(name)))
    if name in STATIC:
        return _static(name, _stated_shape(manifest, name, 1, 3), dtype_of(STATIC[name]))
    known = ", ".join(
        sorted({*OPTIONAL_VIEW_ROWS, *OPTIONAL_ROWS, *STATIC, *(f"{prefix}NAME" for prefix in FEATURE_TYPES)})
    )
    raise ConfigError(f"field {name!r} is not part of format 1; expected one of {known}")


def feature_type(field: str) -> str:
    """Type of a feature array's values by its name; "" when the name is not that of a feature array."""
    return next((dtype for prefix, dtype in FEATURE_TYPES.items() if field.startswith(prefix)), "")


def feature_field(name: str, dtype: str) -> str:
    """The array that holds a feature: "features/NAME" in float16, "features32/NAME" in float32.

    Array names have letters, digits and underscores only, so the dots of a module's name become underscores.
    """
    prefix = next(prefix for prefix, kept in FEATURE_TYPES.items() if kept == dtype)
    return prefix + name.replace(".", "_")


def is_feature(field: str) -> bool:
    """Whether a field names a feature array of format 1."""
    plain = field.partition("/")[2]
    return bool(feature_type(field)) and plain.replace("_", "").isalnum() and plain.isascii() and len(plain) <= 64


def _stated_shape(manifest: StoreManifest, name: str, least: int, most: int) -> tuple[int, ...]:
    shape = manifest.static_shapes.get(name)
    if not isinstance(shape, list | tuple) or not least <= len(shape) <= most:
        raise ConfigError(
            f"field {name!r}: expected its shape of {least} to {most} axes in static_shapes, found {shape!r}"
        )
    if any(type(size) is not int or not 1 <= size <= 2**32 for size in shape):
        raise ConfigError(f"field {name!r}: expected whole axis sizes from 1 to 2**32, found {list(shape)!r}")
    return tuple(shape)


def _static(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ArrayLayout:
    per_row = math.prod(shape[1:]) * dtype.itemsize
    rows = min(shape[0], max(1, STATIC_CHUNK_BYTES // per_row))
    axes = ("class", "column", "column1")[: len(shape)]
    return ArrayLayout(
        name=name, kind="static", shape=shape, chunk_shape=(rows, *shape[1:]), dtype=dtype, axes=axes, packing="bytes"
    )


def _commit(manifest: StoreManifest) -> ArrayLayout:
    shape = (1 + manifest.num_views * manifest.blocks_per_view, DIGEST_BYTES)
    # Not compressed: digests are noise, and a damaged row can then still be told from its neighbours.
    return ArrayLayout(
        name="commit",
        kind="commit",
        shape=shape,
        chunk_shape=shape,
        dtype=np.dtype("uint8"),
        axes=("block", "byte"),
        packing="plain",
    )
