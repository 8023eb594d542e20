"""Image files in class folders: `ROOT/SPLIT/CLASS/**/NAME.JPEG`, in the row order of torchvision's `ImageFolder`.

The raw bytes of a row are the file's bytes, since JPEG decoders differ; a decoded example is RGB, grey images too.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from kdcache.errors import IncompatibleError, NotFoundError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class FileSource:
    """Labelled image files.

    Args:
        folder: the split's folder; row paths are relative to it.
        paths: one relative path a row.
        labels: (N,) integers.
        name: data set name.
        split: split name.
        num_classes: K.
        class_names: K names.
    """

    identity = "full"

    def __init__(
        self,
        folder: Path,
        paths: list[str],
        labels: NDArray[np.integer],
        *,
        name: str,
        split: str,
        num_classes: int,
        class_names: tuple[str, ...],
    ) -> None:
        self.folder = folder
        self.paths = paths
        self.labels: NDArray[np.int64] = np.ascontiguousarray(labels, dtype=np.int64)
        self.name = name
        self.split = split
        self.num_classes = num_classes
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.paths)

    def raw(self, row: int) -> bytes:
        """The file's bytes.

        Raises:
            NotFoundError: the file has gone since the folder was listed.
        """
        path = self.folder / self.paths[row]
        try:
            return path.read_bytes()
        except OSError as error:
            raise NotFoundError(f"{path}: row {row} of {self.name!r} cannot be read ({error})") from error

    def example(self, row: int) -> NDArray[np.generic]:
        """The decoded image, uint8 (H, W, 3).

        Raises:
            IncompatibleError: the file is not an image, or is cut short.
        """
        return self.example_from_raw(row, self.raw(row))

    def example_from_raw(self, row: int, raw: bytes) -> NDArray[np.generic]:
        """The image in the file's bytes, which were read already; as `example`."""
        return decode_image(raw, subject=f"{self.folder / self.paths[row]} (row {row})")

    def fingerprint(self) -> str:
        """Hex sha256 of every file's path, size and modification time: changes whenever the content may have."""
        digest = hashlib.sha256(f"{self.folder.resolve()}\n".encode())
        for path in self.paths:
            status = os.stat(self.folder / path)
            digest.update(f"{path}\x1f{status.st_size}\x1f{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def open_image_folder(folder: Path, *, name: str, split: str) -> FileSource:
    """List class folders and their images: classes by name, then paths by name, as `ImageFolder` does.

    Raises:
        NotFoundError: no such folder, no class folders, or a class without images.
    """
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()) if folder.is_dir() else []
    if not classes:
        raise NotFoundError(
            f"{folder}: expected one folder of images per class, found none", hint="see data/README.md for the layout"
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        found = _images_under(folder, class_name)
        if not found:
            raise NotFoundError(f"{folder / class_name}: no image files ({', '.join(IMAGE_SUFFIXES)})")
        paths.extend(found)
        labels.extend([label] * len(found))
    return FileSource(
        folder,
        paths,
        np.asarray(labels),
        name=name,
        split=split,
        num_classes=len(classes),
        class_names=tuple(classes),
    )


def decode_image(content: bytes, *, subject: str) -> NDArray[np.generic]:
    """Decode an image file's bytes to uint8 (H, W, 3) RGB; grey, palette and transparent images are converted.

    Raises:
        IncompatibleError: the bytes are not an image, or are cut short; `subject` begins the message.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise IncompatibleError(f"{subject}: not a readable image ({error})") from error


def _images_under(folder: Path, class_name: str) -> list[str]:
    found = []
    for parent, _, names in sorted(os.walk(folder / class_name, followlinks=True)):
        relative = os.path.relpath(parent, folder)
        found += [f"{relative}/{name}" for name in sorted(names) if name.lower().endswith(IMAGE_SUFFIXES)]
    return found
