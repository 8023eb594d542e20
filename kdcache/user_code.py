"""Loads `path/to/file.py:factory`: code of the user's own, run only because the user named it.

The file's folder is importable while the file is loaded and while its factory runs, and only then. The digest covers
the named file alone; modules it imports are the user's responsibility. No sandbox: this is not for files of strangers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

from kdcache.errors import ConfigError, NotFoundError
from kdcache.nearest import did_you_mean


@dataclass(frozen=True, kw_only=True)
class UserFactory:
    """A function of a user's file, not yet called.

    Attributes:
        path: the file, absolute.
        function: the function's name in it.
        code_digest: hex sha256 of the file's bytes.
    """

    path: Path
    function: str
    code_digest: str

    def call(self, *arguments: Any) -> Any:
        """Import the file and call the function; `arguments` are passed by position.

        Raises:
            ConfigError: the file does not import, has no such function, or the function raises.
        """
        with _importable(self.path.parent):
            function = _function(self)
            try:
                return function(*arguments)
            except Exception as error:
                raise ConfigError(
                    f"{self.path}:{self.function} raised {type(error).__name__}: {error}",
                    hint="call the function by itself in Python to see the whole traceback",
                ) from error


def is_user_factory(name: str) -> bool:
    """Whether a MODEL or data set name has the form `file.py:factory`."""
    path, colon, function = name.rpartition(":")
    return bool(colon) and path.endswith(".py") and bool(function)


def find_factory(name: str) -> UserFactory:
    """Locate `path/to/file.py:factory` without running it.

    Raises:
        ConfigError: the name does not have that form.
        NotFoundError: there is no such file.
    """
    if not is_user_factory(name):
        raise ConfigError(f"{name!r}: expected path/to/file.py:factory", hint="give the file, a colon, a function name")
    path_text, _, function = name.rpartition(":")
    path = Path(path_text).expanduser().resolve()
    if not path.is_file():
        raise NotFoundError(
            f"{path}: no such file (from {name!r})", hint="check the path; it is relative to this folder"
        )
    return UserFactory(path=path, function=function, code_digest=hashlib.sha256(path.read_bytes()).hexdigest())


class _UncachedLoader(SourceFileLoader):
    """Compiles the file itself: cached bytecode is chosen by size and whole seconds, so it may be of an older file."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _function(factory: UserFactory) -> Callable[..., Any]:
    # The digest in the module's name keeps two versions or two files of one name apart; the entry in sys.modules
    # lets dataclasses and worker processes find the module again.
    module_name = f"kdcache_user_{factory.path.stem}_{factory.code_digest[:12]}"
    module = sys.modules.get(module_name)
    if module is None:
        loader = _UncachedLoader(module_name, str(factory.path))
        spec = importlib.util.spec_from_file_location(module_name, factory.path, loader=loader)
        if spec is None or spec.loader is None:
            raise ConfigError(f"{factory.path}: Python cannot load this file as a module")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise ConfigError(f"{factory.path}: importing it raised {type(error).__name__}: {error}") from error
    function = getattr(module, factory.function, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        hint = did_you_mean(factory.function, names) if names else "define that function in the file"
        raise ConfigError(f"{factory.path}: no function {factory.function!r}", hint=hint)
    checked: Callable[..., Any] = function
    return checked


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
