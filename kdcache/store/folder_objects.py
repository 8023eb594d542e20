"""A local folder as objects under names: what `Location` does for paths and file:// URLs, without any library.

Reads are guarded and writes durable as in `files`. Versions are digests of the content, compared under a lock.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from kdcache.errors import NotFoundError
from kdcache.store.files import (
    PARTIAL,
    Entry,
    as_store_errors,
    make_folder,
    one_at_a_time,
    read_bytes,
    sync_folder,
    write_atomic,
)

TRIES = 5


class FolderObjects:
    """Objects of one folder; names are relative paths that `Location` has checked."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, name: str, *, limit: int | None) -> tuple[bytes, Mapping[str, str]]:
        """Content and version; NotFoundError when there is no such file, HostileStoreError above `limit`."""
        path = self.root / name
        root, relative = (self.root, name) if name else (self.root.parent, self.root.name)
        try:
            with as_store_errors(path):
                most = path.lstat().st_size if limit is None else limit
            data = read_bytes(root, relative, limit=most)  # follows no link: the folder may be a stranger's
        except FileNotFoundError as error:
            raise NotFoundError(f"{path}: there is no such file") from error
        return data, _version(data)

    def put(self, name: str, data: bytes) -> Mapping[str, str]:
        """Write durably, whole or not at all; the version written."""
        path = self.root / name
        _in_its_folder(path, lambda: write_atomic(path, data))
        return _version(data)

    def put_new(self, name: str, data: bytes) -> bool:
        """Write unless the name is taken; False when it is. A hard link makes it one step."""
        path = self.root / name
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
        with as_store_errors(path):
            try:
                _in_its_folder(path, lambda: write_atomic(temporary, data))
                os.link(temporary, path)
                sync_folder(path.parent)
                return True
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)

    def replace(self, name: str, data: bytes, version: Mapping[str, str]) -> Mapping[str, str] | None:
        """Write if the content still is the given version; None when it is not."""
        with self._locked(name):
            try:
                _, current = self.get(name, limit=None)
            except NotFoundError:
                return None
            return self.put(name, data) if current == version else None

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        folder = (self.root / name).parent
        with one_at_a_time(folder) if folder.is_dir() else nullcontext():  # without locks the content alone decides
            yield

    def list(self, under: str) -> Iterator[Entry]:
        """Every file under a folder, by name; none when the folder is absent."""
        start = self.root / under if under else self.root
        for folder, folders, files in os.walk(start):
            folders.sort()
            for file in sorted(files):
                path = Path(folder) / file
                try:
                    info = path.lstat()
                except FileNotFoundError:
                    continue  # removed since the folder was listed
                if not file.endswith(PARTIAL):
                    name = path.relative_to(self.root).as_posix()
                    yield Entry(name=name, size=info.st_size, modified=info.st_mtime)

    def delete(self, names: Sequence[str]) -> None:
        """Remove files (absent ones are fine) and the folders that this leaves empty."""
        for name in names:
            path = self.root / name
            with as_store_errors(path):
                path.unlink(missing_ok=True)
                for folder in path.parents:
                    if folder == self.root:
                        break
                    try:
                        folder.rmdir()
                    except OSError:
                        break  # not empty, or gone already

    def stat(self, name: str) -> Entry | None:
        """Bytes and time of a file, or None when there is none."""
        try:
            info = (self.root / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Entry(name=name, size=info.st_size, modified=info.st_mtime)


def _in_its_folder(path: Path, write: Callable[[], None]) -> None:
    """Write a file, its folder made first; again where somebody's `delete` found that folder empty and removed it."""
    for attempt in range(TRIES):
        make_folder(path.parent)
        try:
            write()
            return
        except FileNotFoundError:
            if attempt + 1 == TRIES:
                raise


def _version(data: bytes) -> Mapping[str, str]:
    return {"e_tag": hashlib.sha256(data).hexdigest()}
