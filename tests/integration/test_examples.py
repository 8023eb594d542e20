"""The examples run as they stand and their students learn; those of optional packages are skipped where these are not.

One process runs them all: torch is imported once.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from kdcache.datasets.cards import open_dataset
from tests.integration.distill_setup import ROOT, finish, start
from tests.small_store import write_small_store

NEEDS = {
    "own_loop": (),
    "lightning_module": ("lightning",),
    "huggingface_trainer": ("transformers", "accelerate"),
    "timm_loop": ("timm",),
}
DRIVER = """
import contextlib, io, json, runpy, sys, traceback
said = {}
for path in sys.argv[1:]:
    sys.argv = [path]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_path(path, run_name="__main__")
        except Exception:
            traceback.print_exc(file=out)
    said[path] = out.getvalue()
print(json.dumps(said))
"""


def _missing(name: str) -> list[str]:
    return [package for package in NEEDS[name] if importlib.util.find_spec(package) is None]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each example printed, run in a folder with a store of the sample."""
    folder = tmp_path_factory.mktemp("examples")
    source = open_dataset("digit-pairs", split="train")
    (folder / "kdcache-store").mkdir()
    truth = torch.nn.functional.one_hot(torch.tensor(source.labels), 100) * 8.0
    write_small_store(folder / "kdcache-store" / "s.zarr", source, logits=truth, topk=10)
    paths = [str(ROOT / "examples" / f"{name}.py") for name in NEEDS if not _missing(name)]
    out: dict[str, str] = json.loads(finish(start(folder, "-c", DRIVER, *paths)).splitlines()[-1])
    return {Path(path).stem: text for path, text in out.items()}


@pytest.mark.parametrize("name", NEEDS)
def test_a_student_learns_from_a_store(name: str, said: dict[str, str]) -> None:
    if missing := _missing(name):
        pytest.skip(f"{', '.join(missing)} not installed: pip install kdcache[examples]")
    losses = [float(value) for value in re.findall(r"epoch \d+: loss (?:of the last batch )?([\d.]+)", said[name])]
    assert len(losses) >= 3, said[name]
    assert losses[-1] < losses[0]


def test_every_example_is_run() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(NEEDS)
