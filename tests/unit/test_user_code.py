"""The user's file runs when it is named, leaves sys.path as it was, and is identified by its bytes."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from kdcache.errors import ConfigError, NotFoundError
from kdcache.user_code import find_factory, is_user_factory


def test_names_of_factories_are_recognised() -> None:
    assert is_user_factory("a/b.py:make")
    assert is_user_factory("C:\\x\\b.py:make")
    for name in ("b.py", "b.py:", "torchvision:resnet18", "resnet18", ":f"):
        assert not is_user_factory(name)


def test_sys_path_is_restored_also_after_an_error(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("VALUE = 7\n")
    path = tmp_path / "mine.py"
    path.write_text(
        "def f(x):\n    import neighbour_of_mine\n    return neighbour_of_mine.VALUE + x\n\ndef g(): 1 / 0\n"
    )
    before = list(sys.path)
    assert find_factory(f"{path}:f").call(1) == 8
    with pytest.raises(ConfigError, match="raised ZeroDivisionError"):
        find_factory(f"{path}:g").call()
    assert sys.path == before


def test_finding_a_factory_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("raise SystemError('ran')\n")
    factory = find_factory(f"{path}:f")
    assert factory.code_digest == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ConfigError, match="importing it raised SystemError: ran"):
        factory.call()


def test_an_edited_file_is_another_module(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def f(): return 1\n")
    assert find_factory(f"{path}:f").call() == 1
    path.write_text("def f(): return 2\n")
    assert find_factory(f"{path}:f").call() == 2


def test_wrong_names_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected path/to/file.py:factory"):
        find_factory("mine.py")
    with pytest.raises(NotFoundError, match="no such file"):
        find_factory(f"{tmp_path}/mine.py:f")
