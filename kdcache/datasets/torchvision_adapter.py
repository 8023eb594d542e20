"""Reads CIFAR and Fashion-MNIST where torchvision puts them, without torch: the same files, the same row order.

CIFAR's files are pickles; they are read by an unpickler that can build arrays and nothing else. Integrity is a matter
of the pixels, not of the files: the card pins their content digest (or the files' md5). Nothing is downloaded.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import pickle
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.datasets.source import ArraySource
from kdcache.errors import IncompatibleError, NotFoundError

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_ARRAY_BUILDERS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
REMEMBERED = 2  # a training split and the one it is evaluated on: 184 MB of CIFAR-100
_OPENED: OrderedDict[object, tuple[object, ArraySource]] = OrderedDict()
_LOCK = threading.Lock()


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays, containers, text and numbers; everything else in a pickle is refused before it runs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_BUILDERS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return super().find_class(module, name)


def open_cifar(
    folder: Path,
    files: Sequence[str],
    *,
    label_key: str,
    meta: tuple[str, str],
    name: str,
    split: str,
    md5: Mapping[str, str],
) -> ArraySource:
    """Read CIFAR-10 or CIFAR-100 batches; the last two splits of this process are remembered while files stay the same.

    A grid opens the same split for every student: read, unpickled and hashed again it costs 1.7 s, as much as 5,000
    rows of training. Nothing in this package changes a source's arrays.

    Args:
        folder: `cifar-10-batches-py` or `cifar-100-python`.
        files: the split's files, in row order.
        label_key: "labels" or "fine_labels".
        meta: the file of class names, and its key.
        name: data set name.
        split: split name.
        md5: files whose md5 is pinned.

    Returns:
        Images (N, 32, 32, 3) uint8 in the order of the files.

    Raises:
        NotFoundError: a file is missing.
        IncompatibleError: a file is not a CIFAR batch, or not the published one.
    """
    given = (*files, meta[0])
    key = (folder.resolve(), given, label_key, meta[1], name, split, tuple(md5.get(file, "") for file in files))
    stamp = tuple(_stamp(folder / file) for file in given)
    with _LOCK:
        kept = _OPENED.pop(key, None)
        if kept is None or kept[0] != stamp:
            kept = (stamp, _read_cifar(folder, files, label_key=label_key, meta=meta, name=name, split=split, md5=md5))
        _OPENED[key] = kept
        while len(_OPENED) > REMEMBERED:
            _OPENED.popitem(last=False)
    return kept[1]


def _read_cifar(
    folder: Path,
    files: Sequence[str],
    *,
    label_key: str,
    meta: tuple[str, str],
    name: str,
    split: str,
    md5: Mapping[str, str],
) -> ArraySource:
    pixels, labels = [], []
    for file in files:
        batch = _read_pickle(folder / file, md5.get(file, ""))
        data = batch.get("data")
        if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3072):
            raise IncompatibleError(f"{folder / file}: expected uint8 pixels (N, 3072) under 'data'")
        pixels.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(np.asarray(batch.get(label_key, ()), dtype=np.int64))
    class_names = tuple(str(item) for item in _read_pickle(folder / meta[0], "").get(meta[1], ()))
    return ArraySource(
        np.concatenate(pixels),
        np.concatenate(labels),
        name=name,
        split=split,
        num_classes=len(class_names),
        class_names=class_names,
    )


def open_fashion_mnist(folder: Path, *, name: str, split: str) -> ArraySource:
    """Read `FashionMNIST/raw`: idx files, plain or gzipped; images (N, 28, 28, 1) uint8.

    Raises:
        NotFoundError: a file is missing.
        IncompatibleError: a file is not an idx file of the expected shape.
    """
    prefix = "train" if split == "train" else "t10k"
    images = _read_idx(folder / f"{prefix}-images-idx3-ubyte")
    labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte")
    return ArraySource(
        images[..., None],
        labels,
        name=name,
        split=split,
        num_classes=len(FASHION_CLASSES),
        class_names=FASHION_CLASSES,
    )


def _read_pickle(path: Path, md5: str) -> dict[str, Any]:
    content = _read_bytes(path)
    if md5 and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise IncompatibleError(f"{path}: not the published file (its md5 differs)", hint="fetch the data set again")
    try:
        value = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise IncompatibleError(f"{path}: not a CIFAR file ({error})") from error
    if not isinstance(value, dict):
        raise IncompatibleError(f"{path}: expected a dictionary, found {type(value).__name__}")
    return value


def _read_idx(path: Path) -> NDArray[np.uint8]:
    zipped = path.with_name(path.name + ".gz")
    content = gzip.decompress(_read_bytes(zipped)) if zipped.exists() and not path.exists() else _read_bytes(path)
    dimensions = content[3] if len(content) > 4 and content[:3] == b"\x00\x00\x08" else 0
    shape = tuple(int(size) for size in np.frombuffer(content, dtype=">u4", count=dimensions, offset=4))
    if not dimensions or len(content) != 4 + 4 * dimensions + math.prod(shape):
        raise IncompatibleError(f"{path}: not an idx file of bytes, or cut short")
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of change of a file; None where it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file", hint="see data/README.md for how to obtain it") from error
