"""Chunk files: what zarr-python writes is decoded to the same numbers, and anything else is refused before decoding."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from kdcache.errors import ChecksumError, CorruptStoreError, HostileStoreError
from kdcache.store.array_writer import write_static
from kdcache.store.chunks import decode_chunk, max_file_bytes
from kdcache.store.files import make_folder, write_json
from kdcache.store.layout import ArrayLayout, Packing

PACKINGS: tuple[Packing, ...] = ("plain", "zstd", "bits", "bytes")


def layout(shape: tuple[int, ...], dtype: str, packing: Packing) -> ArrayLayout:
    return ArrayLayout(
        name="a",
        kind="static",
        shape=shape,
        chunk_shape=shape,
        dtype=np.dtype(dtype),
        axes=tuple("xyz"[: len(shape)]),
        packing=packing,
    )


def chunk_file(folder: Path, array: ArrayLayout, values: Any) -> bytes:
    make_folder(folder / "a")
    write_json(folder / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {}})
    write_json(folder / "a" / "zarr.json", array.metadata())
    write_static(folder, array, values)
    return (folder / array.chunk_path(*(0 for _ in array.shape))).read_bytes()


def with_crc(body: bytes) -> bytes:
    return body + struct.pack("<I", google_crc32c.value(body))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("dtype", ["uint8", "<u2", "<u4", "<f2", "<f4", "<i8"])
@pytest.mark.parametrize("rows", [1, 3, 10, 31, 100, 4096])
@pytest.mark.parametrize("content", ["noise", "zeros", "fill"])
def test_zarr_python_writes_what_we_decode(
    tmp_path: Path, packing: Packing, dtype: str, rows: int, content: str
) -> None:
    array = layout((rows, 3), dtype, packing)
    rng = np.random.Generator(np.random.Philox(key=rows))
    if content == "noise":
        values = rng.integers(0, 256, size=rows * 3 * array.dtype.itemsize, dtype=np.uint8).view(dtype).reshape(rows, 3)
    else:
        fill = np.array(np.nan if array.fill_value == "NaN" else array.fill_value).astype(dtype)
        values = np.full((rows, 3), 0 if content == "zeros" else fill, dtype=dtype)
    data = chunk_file(tmp_path, array, values)
    assert len(data) <= max_file_bytes(array)
    assert decode_chunk(data, array, where="here").tobytes() == values.tobytes()


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_flipped_bit_is_noticed(tmp_path: Path, packing: Packing) -> None:
    array = layout((64, 3), "<u2", packing)
    data = chunk_file(tmp_path, array, np.arange(192, dtype="<u2").reshape(64, 3))
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        with pytest.raises(ChecksumError, match="crc32c"):
            decode_chunk(bytes(flipped), array, where="here")


@pytest.mark.parametrize("packing", ["bits", "bytes"])
def test_a_blosc_header_with_any_other_number_is_refused(tmp_path: Path, packing: Packing) -> None:
    array = layout((256, 3), "<u2", packing)
    body = chunk_file(tmp_path, array, np.arange(768, dtype="<u2").reshape(256, 3) // 3)[:-4]
    for position in range(24):
        for value in {0, 1, 2, 4, 127, 128, 255} - {body[position]}:
            edited = bytearray(body)
            edited[position] = value
            with pytest.raises(CorruptStoreError):
                decode_chunk(with_crc(bytes(edited)), array, where="here")


@pytest.mark.parametrize("packing", PACKINGS)
def test_truncated_and_padded_files_with_a_right_checksum_are_refused(tmp_path: Path, packing: Packing) -> None:
    array = layout((64, 3), "<u2", packing)
    body = chunk_file(tmp_path, array, np.arange(192, dtype="<u2").reshape(64, 3) // 5)[:-4]
    for cut in range(len(body)):
        with pytest.raises(CorruptStoreError):
            decode_chunk(with_crc(body[:cut]), array, where="here")
    if packing != "zstd":  # bytes after a zstd frame are the decoder's own to refuse
        with pytest.raises(HostileStoreError):
            decode_chunk(with_crc(body + b"\0"), array, where="here")


def test_a_zstd_frame_that_claims_another_size_is_refused_before_decoding(tmp_path: Path) -> None:
    small, large = layout((64, 3), "<u2", "zstd"), layout((2**20, 3), "<u2", "zstd")
    body = chunk_file(tmp_path, large, np.zeros((2**20, 3), dtype="<u2"))
    with pytest.raises(HostileStoreError, match="6291456 bytes when decoded, expected 384"):
        decode_chunk(body, small, where="here")


def test_files_too_short_for_a_checksum_are_named(tmp_path: Path) -> None:
    for data in (b"", b"abc"):
        with pytest.raises(ChecksumError, match=f"here: {len(data)} bytes"):
            decode_chunk(data, layout((4, 3), "<u2", "zstd"), where="here")
