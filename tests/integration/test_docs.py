"""The code blocks of README.md and docs/*.md run, in order, in an empty folder.

```python blocks of one document share one namespace; ```console blocks hold `$ kdcache ...` lines, run by the real
command line in this process. Blocks in other languages are pictures of files and are not run.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdcache.cli.main import run
from tests.integration.distill_setup import finish, start

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    place: str


def blocks(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    return [
        Block(match[1], match[2], f"{document.name}:{text[: match.start()].count(chr(10)) + 1}")
        for match in BLOCK.finditer(text)
    ]


def run_console(block: Block) -> None:
    lines = block.text.replace("\\\n", " ").splitlines()
    commands = [line[2:].split(" #")[0].strip() for line in lines if line.startswith("$ ")]
    assert commands, f"{block.place}: a console block without a `$ ` line"
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "kdcache", f"{block.place}: {command!r} is not a kdcache command; use a ```sh block"
        assert run(words[1:]) == 0, f"{block.place}: {command!r} failed"


WITH_CODE = [document for document in DOCUMENTS if blocks(document)]


@pytest.mark.parametrize("document", WITH_CODE, ids=lambda path: path.name)
def test_code_blocks_run(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "cache"))
    if document.name == "share.md":
        request.getfixturevalue("s3_proxy")  # s3:// is a real server here, with the bucket that the page names
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(document):
        if block.language == "console":
            run_console(block)
        else:
            exec(compile(block.text, block.place, "exec"), namespace)


def test_the_grid_of_the_parallel_page_runs_as_a_script_and_continues(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "parallel.md").read_text().split("```py\n")[1].split("```\n")[0]
    (tmp_path / "study.py").write_text(text)
    assert "5 cells: 5 finished, 0 failed" in finish(start(tmp_path, "study.py"))
    assert "5 cells: 5 finished (5 of them before)" in finish(start(tmp_path, "study.py"))


def test_the_readme_and_the_quickstart_have_code_to_run() -> None:
    for name in ("README.md", "docs/quickstart.md"):
        assert {block.language for block in blocks(ROOT / name)} == {"python", "console"}, name


FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|#|mailto:)([^)#]+)[^)]*\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(document: Path) -> None:
    broken = [
        target
        for target in LINK.findall(FENCED.sub("", document.read_text()))
        if not (document.parent / target).exists()
    ]
    assert not broken
