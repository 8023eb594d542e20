"""One way to name and reach a place: a local path, or a URL of an object store or web server. The only home of obstore.

s3://, gs:// and az:// read and write, http:// and https:// read, file:// is a local folder, memory:// lives in this
process (for tests). A `Location` knows names and bytes; what a store is, it does not know. Every request to a server
goes through `retries.persist`; every message is free of credentials. Not to be used in a forked child: obstore has
threads of its own.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from kdcache.errors import ConfigError, HostileStoreError, KdcacheError, NotFoundError, RemoteError, ResourceError
from kdcache.store.files import Entry
from kdcache.store.folder_objects import FolderObjects
from kdcache.store.retries import Passing, Patience, persist, will_pass
from kdcache.store.service_settings import client_settings, s3_settings
from kdcache.urls import clean_text, clean_url, is_url, refuse_mistyped

T = TypeVar("T")
SCHEMES = ("s3", "gs", "az", "http", "https", "file", "memory")
BULK_BYTES = 32 * 2**20  # larger objects go up in parts, so that a try is never longer than one part
_PART_BYTES = 16 * 2**20
_BAD_PART = re.compile(r"[\x00-\x1f\x7f\\]")
_MEMORY: dict[str, Any] = {}
_MEMORY_LOCK = threading.Lock()

Version = Mapping[str, str]


class Location:
    """A folder, bucket prefix or web folder, and the objects under it; get one from `Location.at`.

    Attributes:
        url: the place as people may see it, without credentials.
        folder: the local folder, or None for a server.
        read_only: a web server.
    """

    def __init__(self, url: str, objects: FolderObjects | _Remote, prefix: str = "") -> None:
        self.url = url
        self._objects = objects
        self._prefix = prefix

    @classmethod
    def at(cls, place: str | Path | Location, *, patience: Patience | None = None) -> Location:
        """The location of a path or URL; nothing is requested yet.

        Args:
            place: a local path, a URL, or a location, which is returned as it is.
            patience: how long requests are tried; None: the environment's, else the defaults.

        Raises:
            ConfigError: an unknown scheme, no bucket, or settings the service refuses; obstore is not installed.
        """
        if isinstance(place, Location):
            return place
        text = str(place)
        if not is_url(text):
            refuse_mistyped(text)
            return cls(text, FolderObjects(Path(text)))
        scheme = text.split("://", 1)[0].lower()
        if scheme == "file":
            path = Path(unquote(text.split("://", 1)[1]))
            if not path.is_absolute():
                raise ConfigError(f"{text}: expected an absolute path after file://", hint="file:///path/to/store")
            return cls(str(path), FolderObjects(path))
        if scheme not in SCHEMES:
            known = ", ".join(f"{name}://" for name in SCHEMES)
            raise ConfigError(f"{clean_url(text)}: unknown scheme {scheme!r}; expected a path or one of {known}")
        objects, prefix = _connect(text, scheme, patience or Patience.from_environment())
        return cls(clean_url(text).rstrip("/"), objects, prefix)

    @property
    def folder(self) -> Path | None:
        """The local folder, or None for a server."""
        return None if isinstance(self._objects, _Remote) else self._objects.root / self._prefix

    @property
    def read_only(self) -> bool:
        """Whether only reading is possible: a web server."""
        return isinstance(self._objects, _Remote) and self._objects.read_only

    def require_writable(self) -> None:
        """Refuse a place that cannot be written, before any work is done for it: ConfigError, ResourceError."""
        if self.read_only:
            raise ConfigError(f"{self}: a web server is only read", hint="write to s3://, gs://, az:// or a folder")
        if self.folder is not None and self.folder.is_file():
            raise ResourceError(f"{self}: expected a folder, found a file", hint="choose another place")

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"Location({self.url!r})"

    def __truediv__(self, name: str) -> Location:
        """The location of a name under this one.

        Raises:
            HostileStoreError: the name does not stay under this location.
        """
        return Location(f"{self.url.rstrip('/')}/{name}", self._objects, self._path(name))

    def get(self, name: str = "", *, limit: int | None = None) -> bytes:
        """All bytes of an object (of the location itself when `name` is ""), in one request.

        Raises:
            NotFoundError: there is no such object.
            HostileStoreError: it has more than `limit` bytes; none of them were fetched.
            RemoteError: the service failed after bounded retries, or refuses access.
        """
        return self.get_version(name, limit=limit)[0]

    def get_version(self, name: str = "", *, limit: int | None = None) -> tuple[bytes, Version]:
        """As `get`, with the version that `replace` compares."""
        return self._objects.get(self._path(name), limit=limit)

    def get_range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of an object; shorter at its end. Errors as `get`."""
        if not 0 <= start < stop:
            raise ConfigError(f"{self.url}/{name}: bytes {start} to {stop}; expected 0 <= start < stop")
        if isinstance(self._objects, _Remote):
            return self._objects.get_range(self._path(name), start, stop)
        return self._objects.get(self._path(name), limit=None)[0][start:stop]

    def put(self, name: str, data: bytes) -> Version:
        """Write an object, whole or not at all, over what is there; returns its version.

        Raises:
            ConfigError: a web server, which is only read.
            RemoteError: the service failed after bounded retries, or refuses access.
        """
        return self._objects.put(self._path(name), data)

    def put_new(self, name: str, data: bytes) -> bool:
        """Write an object only where there is none.

        True when the object now holds exactly `data`: written now, or by a write whose reply was lost. False when there
        is another one, which is left alone. Errors as `put`.
        """
        path = self._path(name)
        if self._objects.put_new(path, data):
            return True
        try:
            return self._objects.get(path, limit=None)[0] == data
        except NotFoundError:
            return False  # removed between the two requests: whoever had it is free to try again

    def replace(self, name: str, data: bytes, version: Version) -> Version | None:
        """Write over exactly this version of an object; None when it is another one by now. Errors as `put`."""
        path = self._path(name)
        written = self._objects.replace(path, data, version)
        if written is not None:
            return written
        try:  # a lost reply to a write that landed looks like a conflict: the content tells
            found, current = self._objects.get(path, limit=None)
        except NotFoundError:
            return None
        return current if found == data and current != version else None

    def list(self, under: str = "") -> Iterator[Entry]:
        """The objects whose names begin with the folder `under`, in one request per thousand; order is the service's.

        Raises:
            ConfigError: a web server, which cannot list.
            RemoteError: as `get`.
        """
        start = self._path(under) if under else self._prefix
        cut = len(self._prefix) + 1 if self._prefix else 0
        for found in self._objects.list(start):
            yield replace(found, name=found.name[cut:])

    def delete(self, *names: str) -> None:
        """Remove objects; absent ones are fine. Errors as `put`."""
        self._objects.delete([self._path(name) for name in names])

    def size(self, name: str = "") -> int | None:
        """Bytes of an object, or None when there is none. Errors as `get`."""
        found = self._objects.stat(self._path(name))
        return None if found is None else found.size

    def modified(self, name: str = "") -> float | None:
        """When an object was written, in seconds on the service's clock; None when there is none. Errors as `get`."""
        found = self._objects.stat(self._path(name))
        return None if found is None else found.modified

    def _path(self, name: str) -> str:
        parts = name.split("/") if name else []
        if any(part in ("", ".", "..") or _BAD_PART.search(part) for part in parts):
            raise HostileStoreError(f"{self.url}: the name {name!r} does not stay inside this location")
        return "/".join([self._prefix, *parts] if self._prefix else parts)


class _Remote:
    """Objects behind obstore: translates its errors, and tries again what may pass."""

    def __init__(self, place: str, store: Any, writer: Any, patience: Patience, *, read_only: bool) -> None:
        self._place = place  # scheme and bucket or host, credential-free
        self._store = store
        self._writer = writer
        self._patience = patience
        self.read_only = read_only

    def get(self, path: str, *, limit: int | None) -> tuple[bytes, Version]:
        def attempt() -> tuple[bytes, Version]:
            found = _obstore().get(self._store, path)
            size = int(found.meta["size"])
            if limit is not None and size > limit:
                raise HostileStoreError(f"{self._place}/{path}: {size} bytes; expected at most {limit}")
            data = bytes(found.bytes())
            if len(data) != size:
                raise Passing(f"{len(data)} of {size} bytes came")
            return data, _version(found.meta)

        return self._try("GET", path, attempt)

    def get_range(self, path: str, start: int, stop: int) -> bytes:
        def attempt() -> bytes:
            return bytes(_obstore().get(self._store, path, options={"range": (start, stop)}).bytes())

        try:
            return self._try("GET", path, attempt)
        except _NotSupportedError:  # a web server that only serves whole files
            return self.get(path, limit=None)[0][start:stop]

    def put(self, path: str, data: bytes) -> Version:
        def attempt() -> Version:
            parts = len(data) > BULK_BYTES
            return _version(_obstore().put(self._writer, path, data, use_multipart=parts, chunk_size=_PART_BYTES))

        return self._try("PUT", path, attempt)

    def put_new(self, path: str, data: bytes) -> bool:
        def attempt() -> bool:
            _obstore().put(self._writer, path, data, mode="create", use_multipart=False)
            return True

        try:
            return self._try("PUT", path, attempt)
        except _ConflictError:
            return False

    def replace(self, path: str, data: bytes, version: Version) -> Version | None:
        def attempt() -> Version:
            return _version(_obstore().put(self._writer, path, data, mode=version, use_multipart=False))

        try:
            return self._try("PUT", path, attempt)
        except (_ConflictError, NotFoundError):
            return None

    def list(self, under: str) -> Iterator[Entry]:
        if self.read_only:
            raise ConfigError(f"{self._place}/{under}: a web server cannot list its folders; expected s3://, gs:// ...")

        def attempt() -> list[Entry]:
            return [_entry(item) for page in _obstore().list(self._store, prefix=under or None) for item in page]

        yield from self._try("LIST", under, attempt)

    def delete(self, paths: Sequence[str]) -> None:
        if paths:
            self._try("DELETE", paths[0], lambda: _delete(self._writer, paths))

    def stat(self, path: str) -> Entry | None:
        try:
            return self._try("HEAD", path, lambda: _entry(_obstore().head(self._store, path)))
        except NotFoundError:
            return None

    def _try(self, verb: str, path: str, action: Callable[[], T]) -> T:
        what = f"{verb} {self._place}/{path}"
        if self.read_only and verb in ("PUT", "DELETE"):
            raise ConfigError(f"{self._place}/{path}: a web server is only read", hint="write to s3://, gs:// or az://")
        return persist(lambda: _translated(what, action), what=what, patience=self._patience)


class _ConflictError(Exception):
    """The object is there already, or has another version."""


class _NotSupportedError(Exception):
    """The server has no such operation."""


def _translated(what: str, action: Callable[[], T]) -> T:
    """Run one request; obstore's errors become final ones, conflicts, or `Passing`.

    They are raised outside of the except clause: obstore's own errors hold URLs with credentials, and would otherwise
    travel along as the context that a traceback shows.
    """
    try:
        return action()
    except (KdcacheError, Passing):
        raise
    except Exception as error:
        failure = _translation(what, error)
        if failure is None:
            raise
    raise failure


def _translation(what: str, error: Exception) -> Exception | None:
    kinds = _obstore().exceptions
    if isinstance(error, FileNotFoundError):  # what is written need not be there; its bucket must
        return NotFoundError(f"{what.split(' ', 1)[1]}: there is no such {'bucket' if what[:3] == 'PUT' else 'object'}")
    if isinstance(error, kinds.AlreadyExistsError | kinds.PreconditionError):
        return _ConflictError()
    if isinstance(error, kinds.NotSupportedError):
        return _NotSupportedError()
    reason = _reason(error)
    if isinstance(error, kinds.PermissionDeniedError | kinds.UnauthenticatedError):
        hint = "check the credentials in the environment (AWS_ACCESS_KEY_ID ...) and what they may do"
        return RemoteError(f"{what}: access refused: {reason}", hint=hint)
    if isinstance(error, ValueError):
        return HostileStoreError(f"{what}: not a name an object can have ({reason})")
    if not isinstance(error, kinds.BaseError | OSError):
        return None
    if will_pass(reason):
        return Passing(reason)
    hint = "check bucket, endpoint and credentials"
    return RemoteError(f"{what}: the service refuses this request: {reason}", hint=hint)


def _reason(error: BaseException) -> str:
    """What went wrong in one line, without credentials: obstore appends a dump of its internals."""
    lines = str(error).split("\n\nDebug source")[0].split()
    return clean_text(" ".join(lines))[:300]


def _entry(meta: Mapping[str, Any]) -> Entry:
    return Entry(name=meta["path"], size=int(meta["size"]), modified=meta["last_modified"].timestamp())


def _version(meta: Mapping[str, Any]) -> dict[str, str]:
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}


def _delete(store: Any, paths: Sequence[str]) -> None:
    try:
        _obstore().delete(store, list(paths))
    except FileNotFoundError:
        for path in paths:  # some services stop at the first that is absent
            with suppress(FileNotFoundError):
                _obstore().delete(store, path)


def _obstore() -> Any:
    try:
        import obstore
    except ImportError as error:
        raise ConfigError(
            "URLs need the package obstore, which is not installed", hint="pip install 'kdcache[s3]'"
        ) from error
    return obstore


def _connect(url: str, scheme: str, patience: Patience) -> tuple[_Remote, str]:
    """The object store a URL names, and the prefix inside it."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"{clean_url(url)}: not a URL: {clean_text(str(error))}") from None
    bucket, prefix = parts.netloc.rsplit("@", 1)[-1], unquote(parts.path).strip("/")
    if not bucket:
        raise ConfigError(f"{clean_url(url)}: expected a bucket, host or name after {scheme}://")
    place = f"{scheme}://{clean_url(url).split('://', 1)[1].partition('/')[0]}"
    if scheme == "memory":
        with _MEMORY_LOCK:
            store = _MEMORY.setdefault(bucket, _obstore().store.MemoryStore())
        return _Remote(place, store, store, patience, read_only=False), prefix
    read, write = client_settings(patience, writing=False), client_settings(patience, writing=True)
    try:
        if scheme in ("http", "https"):
            root = f"{scheme}://{parts.netloc}/" + (f"?{parts.query}" if parts.query else "")
            web = _obstore().store.HTTPStore(root, **read)
            return _Remote(place, web, web, patience, read_only=True), prefix
        make, settings = _bucket_maker(scheme)
        store, writer = make(bucket, **settings, **read), make(bucket, **settings, **write)
    except (_obstore().exceptions.BaseError, ValueError) as error:
        raise ConfigError(
            f"{place}: {_reason(error)}", hint="docs/share.md lists the settings each service reads"
        ) from None
    return _Remote(place, store, writer, patience, read_only=False), prefix


def _bucket_maker(scheme: str) -> tuple[Any, dict[str, Any]]:
    stores = _obstore().store
    if scheme == "s3":
        return stores.S3Store, s3_settings(os.environ)
    return (stores.GCSStore if scheme == "gs" else stores.AzureStore), {}
