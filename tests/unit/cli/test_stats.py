"""`kdcache stats` on the command line: text, JSON, exit codes, and that help stays free of torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kdcache.cli.main import run
from tests.logit_store import random_logits, write_logit_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    first, labels = random_logits(300, 40)
    second = first + random_logits(300, 40, seed=1)[0]
    return write_logit_store(tmp_path / "store", [first, second], labels, topk=5)


def test_text_answers_the_questions(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["stats", str(store), "-q"]) == 0
    text = capsys.readouterr().out
    for part in ("top-1 ", "ECE ", "suggested k", "99 % needs", "cosine", "suggested V", "label noise", "topk_index"):
        assert part in text
    assert "~" in text  # five classes are not enough at T=8: the text says what can be said


def test_json_is_one_document_of_every_figure(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["stats", str(store), "--json", "--temperature", "1,4.5", "--contradictions", "3", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [at["temperature"] for at in found["temperatures"]] == [1, 4.5]
    assert len(found["temperatures"][0]["mass"]) == 5
    assert len(found["contradictions"]) == 3
    assert found["agreement"]["pairs"] == 300
    assert "class_means" not in found


@pytest.mark.parametrize(("words", "code"), [(["--temperature", "0"], 2), (["--temperature", "warm"], 2)])
def test_bad_options_are_usage_errors(store: Path, words: list[str], code: int) -> None:
    assert run(["stats", str(store), *words]) == code


def test_a_folder_that_is_no_store_is_incompatible(tmp_path: Path) -> None:
    assert run(["stats", str(tmp_path)]) == 3


def test_help_imports_no_torch() -> None:
    code = "import sys; from kdcache.cli.main import run; run(['stats', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
