"""Files of a store: guarded reads and durable, atomic writes. Knows paths and bytes, nothing about arrays.

Reads never follow a link inside the store, never open anything but a regular file, and never read more than the caller
says the file may hold: a store is data from a stranger. Writes appear under their final name whole or not at all.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kdcache.errors import ConfigError, CorruptStoreError, HostileStoreError, KdcacheError, NotFoundError, ResourceError

MAX_ROOT_JSON = 16 * 2**20  # 21,000 class names and a few hundred canaries take under 1 MB
MAX_ARRAY_JSON = 64 * 2**10
PARTIAL = ".partial"  # the ending of files that are still being written, ours and zarr-python's alike
WORK_FOLDER = ".kdcache"  # lease and commit records; gone once a store is sealed and closed


class RemoteFiles(Protocol):
    """What reading a store needs of a place that is not a local folder; `location.Location` is one."""

    @property
    def read_only(self) -> bool:
        """A place that cannot list what it holds, either."""

    def get(self, name: str = "", *, limit: int | None = None) -> bytes:
        """All bytes of a file; NotFoundError, HostileStoreError above `limit`."""

    def list(self, under: str = "") -> Iterator[Entry]:
        """The files under a folder."""

    def __truediv__(self, name: str) -> RemoteFiles:
        """A name under this place, for messages."""


Root = Path | RemoteFiles  # where a store's files are read from


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One object of a listing: its name under the location, its bytes, and when it was written (server's seconds)."""

    name: str
    size: int
    modified: float


def local_path(location: str | Path) -> Path:
    """The local folder a location names.

    Raises:
        ConfigError: a URL; stores are read and written locally, remote ones are copied first.
    """
    text = str(location)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    if "://" in text:
        raise ConfigError(
            f"{text}: expected a local folder, found a URL", hint=f"kdcache pull {text} DIR, then use DIR"
        )
    return Path(text)


def read_bytes(root: Root, relative: str, *, limit: int) -> bytes:
    """The bytes of one file of a store.

    Args:
        root: the store's folder; it may itself be reached through a link, nothing under it may. Or a remote place.
        relative: path under the root with forward slashes.
        limit: the most bytes the file may hold.

    Raises:
        FileNotFoundError: there is no such file (the caller says what that means).
        HostileStoreError: a link, a special file, or more than `limit` bytes.
        ResourceError: no permission. RemoteError: a service failed.
    """
    if not isinstance(root, Path):
        try:
            return root.get(relative, limit=limit)
        except NotFoundError as error:
            raise FileNotFoundError(error.message) from None
    with as_store_errors(root / relative):
        descriptor = _open_inside(root, relative)
        try:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                raise HostileStoreError(f"{root / relative}: expected a regular file, found something else")
            if info.st_size > limit:
                raise HostileStoreError(
                    f"{root / relative}: {info.st_size} bytes; expected at most {limit} from the store's own manifest"
                )
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(limit + 1)
        finally:
            os.close(descriptor)


def _open_inside(root: Path, relative: str) -> int:
    """Open part by part without following links, so that no rename in between leads outside."""
    parts = relative.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise HostileStoreError(f"{root}: the path {relative!r} does not stay inside the store")
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = inner
        # O_NONBLOCK: a named pipe must not hang the reader
        return os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        # a link: ELOOP for the last part, ENOTDIR for a folder; a device without a driver: ENXIO
        if error.errno in (errno.ELOOP, errno.ENXIO) or (error.errno == errno.ENOTDIR and _is_link(root, parts)):
            raise HostileStoreError(f"{root / relative}: a link or special file inside a store is refused") from error
        raise
    finally:
        os.close(folder)


def _is_link(root: Path, parts: list[str]) -> bool:
    return any(root.joinpath(*parts[: depth + 1]).is_symlink() for depth in range(len(parts)))


def read_json(root: Root, relative: str, *, limit: int) -> Any:
    """Parsed JSON of one file of a store; errors as `read_bytes`, and CorruptStoreError when it is not JSON."""
    data = read_bytes(root, relative, limit=limit)
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CorruptStoreError(
            f"{root / relative}: expected JSON, found something else ({error})",
            hint="put it back from a copy of the store, or dump to another place" if relative == "zarr.json" else "",
        ) from error


def repair_hint(root: Root) -> str:
    """What to type when blocks of a store are bad."""
    return (
        f"give the dump-teacher command that made the store again, with --out {root}: it rewrites only the bad blocks"
    )


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def walk_files(root: Root, *, under: str = "") -> Iterator[tuple[str, int]]:
    """(relative path, bytes) of every entry that is not a folder, links not followed; the work folder is left out.

    A web server lists nothing: there are no entries then.

    Raises:
        HostileStoreError: a link inside the store, or more than 64 levels.
    """
    if not isinstance(root, Path):
        for found in () if root.read_only else root.list(under):
            if not found.name.startswith(f"{WORK_FOLDER}/"):
                yield found.name, found.size
        return
    start = root / under if under else root
    if start.is_symlink() and under:
        raise HostileStoreError(f"{start}: a link inside a store is refused")
    stack = [(start, 0)]
    while stack:
        folder, depth = stack.pop()
        if depth > 64:
            raise HostileStoreError(f"{folder}: folders nested deeper than any store's")
        with as_store_errors(folder), os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name == WORK_FOLDER and folder == root:
                    continue
                if entry.is_symlink():
                    raise HostileStoreError(f"{entry.path}: a link inside a store is refused")
                if entry.is_dir(follow_symlinks=False):
                    stack.append((Path(entry.path), depth + 1))
                else:
                    try:
                        info = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # a store being written renames its partial files: gone since the folder was listed
                    yield Path(entry.path).relative_to(root).as_posix(), info.st_size


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file durably: temporary name, fsync, rename, fsync of the folder.

    Raises:
        ResourceError: no space, no permission or a failing disk.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    with as_store_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def json_bytes(value: Any) -> bytes:
    """The text of a JSON file of a store: indented, sorted keys."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON durably (`write_atomic`)."""
    write_atomic(path, json_bytes(value))


def make_folder(path: Path) -> None:
    """Create a folder and its parents durably; fine when it exists."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    with as_store_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            sync_folder(folder.parent)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[bool]:
    """Let one process (and thread) at a time in, for a folder; whether it really is alone.

    Where the file system has no locks nobody waits, and False says so.

    Raises:
        FileNotFoundError: there is no such folder. ResourceError: it cannot be opened.
    """
    with as_store_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    alone = False
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            alone = True
        yield alone
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Flush a written file to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries (new names, renames, removals) to the disk."""
    sync_file(path)


def remove_partials(root: Path, *, keep: Callable[[str], bool] | None = None) -> int:
    """Remove what killed writers left half-written, but for relative paths that `keep` accepts; returns how many."""
    removed = 0
    for relative, _ in list(walk_files(root)):
        if relative.endswith(PARTIAL) and not (keep is not None and keep(relative)):
            (root / relative).unlink(missing_ok=True)
            removed += 1
    return removed


@contextmanager
def as_store_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors about a path into kdcache's; FileNotFoundError passes through."""
    try:
        yield
    except (KdcacheError, FileNotFoundError):
        raise
    except NotADirectoryError as error:
        raise NotFoundError(
            f"{path}: expected a store (a folder), found a file on the way", hint="check the path; a store is a folder"
        ) from error
    except OSError as error:
        raise ResourceError(f"{path}: {error.strerror or error}", hint=_hint_for(error)) from error


_HINTS: dict[int, str] = {
    errno.ENOSPC: "free some space, then give the same command again: it continues where it stopped",
    errno.EDQUOT: "free some space of your quota, then give the same command again",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), then give the same command again: it continues",
    errno.EACCES: "check the permissions of this path",
    errno.EPERM: "check the permissions of this path",
    errno.EROFS: "choose a place that can be written",
}


def _hint_for(error: OSError) -> str:
    return _HINTS.get(error.errno or 0, "check the disk, then give the same command again")


def tree_bytes(root: Root, *, groups: Collection[str] = ()) -> dict[str, int]:
    """Bytes on disk per first path part ("topk_index", "zarr.json", ...); below `groups` per array ("features/f")."""
    totals: dict[str, int] = {}
    for relative, size in walk_files(root):
        parts = relative.split("/")
        name = "/".join(parts[:2]) if parts[0] in groups and len(parts) > 2 else parts[0]
        totals[name] = totals.get(name, 0) + size
    return totals
