"""From the bytes of one chunk file to an array, trusting nothing: checksum, frame header, size, then decode.

Only the codec chains of layout.py are understood. zstd's decoder is memory-safe and is given a buffer of exactly the
size the manifest implies; a frame that claims any other size is refused before it is decoded. blosc's decoder is not
memory-safe on bytes of a stranger, so every number of its frame is compared with the only one it can be first.
"""

from __future__ import annotations

import struct
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.blosc import Blosc
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from kdcache.errors import ChecksumError, HostileStoreError
from kdcache.store.layout import ArrayLayout

CRC_BYTES = 4
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD = Zstd()
_BLOSC = Blosc()
_BLOSC_BYTES, _BLOSC_COPIED, _BLOSC_BITS, _BLOSC_ONE_STREAM, _BLOSC_ZSTD = 0x01, 0x02, 0x04, 0x10, 4 << 5


def max_file_bytes(array: ArrayLayout) -> int:
    """The most bytes an honest chunk file can have: zstd's own bound for noise, and the checksum."""
    return array.chunk_bytes + array.chunk_bytes // 128 + 1024


def pack_plain(values: NDArray[Any]) -> bytes:
    """The chunk file of an array that is not compressed: the values, C order, then their crc32c."""
    body = np.ascontiguousarray(values).tobytes()
    return body + struct.pack("<I", google_crc32c.value(body))


def decode_chunk(data: bytes, array: ArrayLayout, *, where: str) -> NDArray[Any]:
    """Decode one chunk file.

    Args:
        data: the file's bytes.
        array: the layout the chunk must have.
        where: how messages name the chunk.

    Returns:
        array of `chunk_shape` and `dtype`, padding included.

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
    if array.packing == "zstd":
        body = _decompress(_ZSTD, body, array.chunk_bytes, where)
    elif array.packing != "plain":
        body = _unpack_blosc(body, array, where)
    if len(body) != array.chunk_bytes:
        raise HostileStoreError(f"{where}: {len(body)} decoded bytes, expected {array.chunk_bytes}")
    return np.frombuffer(body, dtype=array.dtype).reshape(array.chunk_shape)


def _decompress(codec: Zstd | Blosc, body: memoryview, size: int, where: str) -> memoryview:
    if codec is _ZSTD:
        _check_zstd_size(body, size, where)
    out = bytearray(size)
    try:
        codec.decode(body, out)
    except (RuntimeError, ValueError) as error:
        raise ChecksumError(f"{where}: the decoder refuses the bytes ({error})") from error
    return memoryview(out)


def _unpack_blosc(body: memoryview, array: ArrayLayout, where: str) -> memoryview:
    """Decode a blosc frame after walking all of it: nothing in it is left for blosc's own decoder to believe.

    A chunk is one blosc block, so its frame is: 16 bytes of header, the block's offset (20), its compressed size, and
    one zstd frame up to the end; or, for bytes that do not compress, the header and the bytes themselves.
    """
    size = array.chunk_bytes
    flags = _BLOSC_ZSTD | _BLOSC_ONE_STREAM | (_BLOSC_BITS if array.packing == "bits" else _BLOSC_BYTES)
    if len(body) < 16:
        raise HostileStoreError(f"{where}: {len(body)} bytes are no blosc frame")
    version, inner_version, found, typesize, decoded, block, stored = struct.unpack("<BBBBIII", body[:16])
    copied = bool(found & _BLOSC_COPIED)
    header = (version, inner_version, found & ~_BLOSC_COPIED, typesize, decoded, block, stored)
    if header != (2, 1, flags, array.dtype.itemsize, size, size, len(body)):
        raise HostileStoreError(f"{where}: a blosc frame {header} that is not what format 1 writes for this array")
    if copied:
        return body[16:]
    if len(body) < 24 or struct.unpack("<II", body[16:24]) != (20, len(body) - 24):
        raise HostileStoreError(f"{where}: a blosc frame whose block does not fill it")
    _check_zstd_size(body[24:], size, where)
    return _decompress(_BLOSC, body, size, where)


def _check_zstd_size(body: memoryview, size: int, where: str) -> None:
    claimed = _frame_content_size(body)
    if claimed != size:
        raise HostileStoreError(f"{where}: a zstd frame of {claimed} bytes when decoded, expected {size}")


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
