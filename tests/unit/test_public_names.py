"""`import kdcache` offers its names without paying for them."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kdcache


def test_every_public_name_is_there() -> None:
    for name in kdcache.__all__:
        assert getattr(kdcache, name) is not None
    assert set(kdcache.__all__) <= set(dir(kdcache))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kdcache.nothing  # noqa: B018


def test_importing_does_not_import_torch_but_using_does() -> None:
    code = (
        "import sys, kdcache; assert 'torch' not in sys.modules; assert 'numpy' not in sys.modules; "
        "kdcache.errors.ConfigError; assert 'torch' not in sys.modules; "
        "kdcache.open_store; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
