"""What people install: sdist and wheel carry the sample and the cards; the two commands work from the wheel alone."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ("sample/digits.npz", "sample/teacher.safetensors")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_sdist_and_wheel_carry_the_sample_and_the_cards(built: Path) -> None:
    cards = sorted(path.name for path in (ROOT / "data" / "cards").glob("*.toml"))
    assert cards
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        inside = set(wheel.namelist())
    assert {f"kdcache/_data/{name}" for name in SAMPLE} <= inside
    assert {f"kdcache/_data/cards/{name}" for name in cards} <= inside
    scripts = sorted(path.name for path in (ROOT / "data" / "scripts").glob("*.py"))
    assert {f"kdcache/_data/scripts/{name}" for name in scripts} <= inside
    assert {"kdcache/html/style.css", "kdcache/html/script.js"} <= inside  # what report pages are made of
    assert not [name for name in inside if name.startswith(("tests/", "pipelines/", "data/"))]
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.split("/", 1)[-1] for name in sdist.getnames()}
    assert {f"data/{name}" for name in SAMPLE} | {f"data/cards/{name}" for name in cards} <= names


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_two_commands_work_from_the_wheel_in_a_clean_environment(built: Path, tmp_path: Path) -> None:
    home = tmp_path / "env"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", next(built.glob("*.whl"))], check=True)
    work = tmp_path / "anywhere"
    work.mkdir()
    for words in (["dump-teacher"], ["distill", "--topk", "10"]):
        done = subprocess.run(
            [home / "bin" / "kdcache", *words, "--json"], cwd=work, check=True, capture_output=True, text=True
        )
        document = json.loads(done.stdout)
    assert document["accuracy"] > 0.8
    place = "import kdcache; print(kdcache.__file__)"
    found = subprocess.run([python, "-c", place], cwd=work, check=True, capture_output=True, text=True)
    assert found.stdout.startswith(str(home))
