"""Data sets in one NPZ file: arrays named after their split, no pickled objects. Everything is held in memory."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.datasets.source import ArraySource
from kdcache.errors import IncompatibleError, NotFoundError
from kdcache.nearest import did_you_mean

EXAMPLE_NAMES = ("images", "inputs")
_HINT = "write it with numpy.savez: SPLIT_images (or SPLIT_inputs) and SPLIT_labels, numbers only"


def open_npz(path: Path, *, name: str, split: str, num_classes: int) -> ArraySource:
    """Read `SPLIT_images` (or `SPLIT_inputs`), `SPLIT_labels` and, if there, `names`.

    Images are uint8 (N, H, W, C) or (N, H, W); other examples are float or integer arrays (N, ...).

    Args:
        path: the file.
        name: data set name.
        split: split name, the prefix of the arrays' names.
        num_classes: K, or 0: as many as `names`, else the largest label of any split and one.

    Raises:
        NotFoundError: no such file.
        IncompatibleError: not an NPZ file, arrays missing or of a wrong shape, or pickled objects in it.
    """
    arrays = read_arrays(path)
    key = next((f"{split}_{word}" for word in EXAMPLE_NAMES if f"{split}_{word}" in arrays), "")
    if not key or f"{split}_labels" not in arrays:
        wanted = f"{split}_labels" if key else f"{split}_images"
        raise IncompatibleError(f"{path}: no array {wanted!r}", hint=f"{did_you_mean(wanted, arrays)}; {_HINT}")
    examples, labels = arrays[key], arrays[f"{split}_labels"]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or examples.ndim < 2:
        raise IncompatibleError(
            f"{path}: expected {key} (N, ...) and integer {split}_labels (N,), "
            f"found {examples.dtype} {examples.shape} and {labels.dtype} {labels.shape}",
            hint=_HINT,
        )
    class_names = tuple(str(item) for item in arrays["names"]) if "names" in arrays else ()
    return ArraySource(
        _plain(path, key, examples),
        labels.astype(np.int64),
        name=name,
        split=split,
        num_classes=num_classes or len(class_names) or _largest_label(arrays) + 1,
        class_names=class_names,
    )


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Every array of an NPZ file.

    Raises:
        NotFoundError: no such file.
        IncompatibleError: not an NPZ file, or it holds pickled objects.
    """
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file", hint="give the NPZ file with --data-root FILE")
    try:
        # numpy leaves a file open that it finds to be no zip; this one is closed whatever happens.
        with path.open("rb") as stream:
            if stream.read(2) not in (b"PK", b"\x93N"):  # numpy would take it for a pickle, and advise to load it
                raise IncompatibleError(f"{path}: expected an NPZ file, found something else", hint=_HINT)
            stream.seek(0)
            content = np.load(stream, allow_pickle=False)
            if not isinstance(content, np.lib.npyio.NpzFile):
                raise IncompatibleError(f"{path}: expected an NPZ file, found a single array", hint=_HINT)
            with content:
                return {key: content[key] for key in content.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise IncompatibleError(f"{path}: not an NPZ file of plain arrays ({error})", hint=_HINT) from error


def _largest_label(arrays: dict[str, NDArray[np.generic]]) -> int:
    labels = [value for key, value in arrays.items() if key.endswith("_labels") and value.size]
    return max((int(np.asarray(value, dtype=np.int64).max()) for value in labels), default=0)


def _plain(path: Path, key: str, examples: NDArray[np.generic]) -> NDArray[np.generic]:
    if examples.dtype == np.uint8:
        return examples[..., None] if examples.ndim == 3 else examples
    if np.issubdtype(examples.dtype, np.floating):
        return examples.astype(np.float32, copy=False)
    if np.issubdtype(examples.dtype, np.integer):
        return examples.astype(np.int64, copy=False)
    raise IncompatibleError(f"{path}: {key} has dtype {examples.dtype}; expected uint8, float or integer", hint=_HINT)
