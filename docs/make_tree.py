"""Writes the tree of README.md: one line per file of kdcache/, taken from the first line of its docstring.

python docs/make_tree.py          # rewrite the section between the two marks; a test holds it current
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START, STOP = "<!-- tree: docs/make_tree.py -->", "<!-- /tree -->"
WIDTH = 150


def first_line(path: Path) -> str:
    """The first sentence of a module's docstring, cut at a colon or semicolon when it is long."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].split())
    sentence = text.split(". ")[0].rstrip(".")
    return sentence if len(sentence) <= WIDTH else sentence[: WIDTH - 1].rsplit(" ", 1)[0] + " ..."


def tree() -> str:
    """The Markdown between the marks."""
    lines = ["```text"]
    for folder in [ROOT / "kdcache", *sorted(p for p in (ROOT / "kdcache").iterdir() if p.is_dir())]:
        files = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
        if not files:
            continue
        lines.append(f"{folder.relative_to(ROOT)}/")
        lines += [f"  {path.name:<24} {first_line(path)}" for path in files]
    return "\n".join([*lines, "```"])


def with_tree(readme: str) -> str:
    """The README with its tree brought up to date."""
    before, rest = readme.split(START)
    after = rest.split(STOP)[1]
    return f"{before}{START}\n\n{tree()}\n\n{STOP}{after}"


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(with_tree(page.read_text()))
