"""From the bytes of one chunk file to an array, trusting nothing: checksum, frame header, size, then decode.

Only the codec chain of layout.py is understood. zstd's decoder is memory-safe and is given a buffer of exactly the size
the manifest implies; a frame that claims any other size is refused before it is decoded.
"""

from __future__ import annotations

import struct
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from kdcache.errors import ChecksumError, HostileStoreError
from kdcache.store.layout import ArrayLayout

CRC_BYTES = 4
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD = Zstd()


def max_file_bytes(array: ArrayLayout) -> int:
    """The most bytes an honest chunk file can have: zstd's own bound for noise, and the checksum."""
    return array.chunk_bytes + array.chunk_bytes // 128 + 1024


def decode_chunk(data: bytes, array: ArrayLayout, *, where: str) -> NDArray[Any]:
    """Decode one chunk file.

    Args:
        data: the file's bytes.
        array: the layout the chunk must have.
        where: how messages name the chunk.

    Returns:
        array of `chunk_shape` and `dtype` (padding included), possibly a transposed view.

    Raises:
        ChecksumError: the outer crc32c does not match, or the decoder refuses the bytes.
        HostileStoreError: the frame asks for another size than the manifest implies.
    """
    if len(data) < CRC_BYTES:
        raise ChecksumError(f"{where}: {len(data)} bytes; a chunk has at least its {CRC_BYTES}-byte checksum")
    body, (expected,) = memoryview(data)[:-CRC_BYTES], struct.unpack("<I", data[-CRC_BYTES:])
    found = google_crc32c.value(bytes(body))
    if found != expected:
        raise ChecksumError(f"{where}: the bytes have crc32c {found:08x}, the file says {expected:08x}")
    if array.compressed:
        body = _decompress(body, array.chunk_bytes, where)
    if len(body) != array.chunk_bytes:
        raise HostileStoreError(f"{where}: {len(body)} decoded bytes, expected {array.chunk_bytes}")
    flat = np.frombuffer(body, dtype=array.dtype)
    if not array.columns_first:
        return flat.reshape(array.chunk_shape)
    rows, *columns = array.chunk_shape[1:]
    stored: NDArray[Any] = flat.reshape(1, *columns, rows)
    return np.moveaxis(stored, -1, 1)


def _decompress(body: memoryview, size: int, where: str) -> memoryview:
    claimed = _frame_content_size(body)
    if claimed != size:
        raise HostileStoreError(f"{where}: a zstd frame of {claimed} bytes when decoded, expected {size}")
    out = bytearray(size)
    try:
        _ZSTD.decode(body, out)
    except (RuntimeError, ValueError) as error:
        raise ChecksumError(f"{where}: zstd refuses the bytes ({error})") from error
    return memoryview(out)


def _frame_content_size(body: memoryview) -> int | None:
    """The decoded size a zstd frame states (RFC 8878, 3.1.1.1); None when it is not a frame or states none."""
    if len(body) < 6 or bytes(body[:4]) != _ZSTD_MAGIC:
        return None
    descriptor = body[4]
    single_segment, size_flag = bool(descriptor & 0x20), descriptor >> 6
    if descriptor & 0x08:  # reserved bit
        return None
    start = 5 + (0 if single_segment else 1) + (0, 1, 2, 4)[descriptor & 0x03]
    width = (1 if single_segment else 0, 2, 4, 8)[size_flag]
    if width == 0 or len(body) < start + width:
        return None
    value = int.from_bytes(body[start : start + width], "little")
    return value + 256 if width == 2 else value
