"""What starting up costs: importing kdcache and asking for help load neither torch nor zarr."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.architecture.source_tree import ROOT

HEAVY = ("torch", "torchvision", "zarr", "numcodecs", "numpy", "tensorboard")
PROBE = """
import json, sys
{code}
json.dump([name for name in {heavy!r} if name in sys.modules], sys.stdout)
"""


def _loaded_by(code: str, heavy: tuple[str, ...] = HEAVY) -> list[str]:
    probe = PROBE.format(code=code, heavy=heavy)
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded: list[str] = json.loads(done.stdout.splitlines()[-1])
    return loaded


def test_import_kdcache_is_light() -> None:
    assert _loaded_by("import kdcache") == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["dump-teacher", "--help"], ["distill", "--help"]])
def test_help_is_light(arguments: list[str]) -> None:
    code = f"from kdcache.cli.main import run\nassert run({arguments!r}) == 0"
    assert _loaded_by(code) == []


def test_reading_a_store_imports_no_torch() -> None:
    code = "import kdcache.store.reader, kdcache.store.info, kdcache.store.verify, kdcache.store.writer"
    assert _loaded_by(code, ("torch", "torchvision")) == []


def test_reading_data_imports_no_torch() -> None:
    code = "import kdcache.datasets.cards, kdcache.datasets.identity, kdcache.views.sampling"
    assert _loaded_by(code, ("torch", "torchvision", "zarr")) == []
