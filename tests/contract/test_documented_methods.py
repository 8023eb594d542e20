"""docs/methods.md, the method table and `kdcache methods` say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kdcache.cli.main import run
from kdcache.targets.methods import HEAD, methods

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
COLUMNS = ("reads", "below", "defaults", "status")
every_method = pytest.mark.parametrize("name", methods)


def _rows() -> dict[str, dict[str, str]]:
    """Method -> its row of the overview table."""
    found: dict[str, dict[str, str]] = {}
    for line in TEXT.splitlines():
        match = re.match(r"\| \[([^\]]+)\]\(#[^)]*\) \| (.*) \|$", line)
        if match:
            cells = dict(zip(COLUMNS, match[2].split(" | "), strict=True))
            found |= dict.fromkeys(match[1].split(", "), cells)
    return found


ROWS = _rows()


def _section(name: str) -> str:
    title = {"wttm": "ttm"}.get(name, name)
    return TEXT.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_the_overview_names_every_method_in_order() -> None:
    assert list(ROWS) == list(methods)


@every_method
def test_the_overview_says_what_the_table_says(name: str) -> None:
    method, row = methods[name], ROWS[name]
    assert row["status"].split(";")[0].split(" /")[0] == method.status.split(";")[0]
    assert row["below"].startswith(("exact", "unbiased")) == method.exact_below_full_k
    reads = row["reads"]
    assert (reads == "-") == (not method.needs and method.make_context is None)
    assert ("head" in reads or reads == "both") == set(HEAD).issubset(method.needs)
    assert ("two views" in reads) == ("view 2" in method.needs)
    assert ("sampled" in reads) == ("sample_index" in method.needs)
    stated = re.match(r"T (\d+)(?:,|$)", row["defaults"])
    assert (None if stated is None else float(stated[1])) == method.default_temperature
    stated = re.search(r"alpha ([\d.]+)", row["defaults"])
    assert (None if stated is None else float(stated[1])) == method.default_alpha
    options = {option.name: option.default for option in method.options}
    for word, option in (("mu", "mu"), ("gamma", "gamma"), ("weight", "soft_weight"), ("smoothing", "smoothing")):
        stated = re.search(rf"{word} ([\d.]+)", row["defaults"])
        assert stated is None or float(stated[1]) == options[option]


@every_method
def test_its_section_has_the_equation_and_the_source(name: str) -> None:
    section = _section(name)
    assert re.search(r"CE|KL|H\(|log q|target|kd", section)
    year = re.search(r"\b(19|20)\d\d\b", methods[name].source)
    if year is not None and name not in ("kd", "ls"):  # Hinton et al. is cited above, label smoothing is textbook
        author = methods[name].source.split()[0].rstrip(",")
        assert author in section, (author, section)


@every_method
def test_options_are_documented_or_explained_by_the_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    method = methods[name]
    assert run(["methods", name]) == 0
    shown = capsys.readouterr().out
    for words in (method.equation, method.source, method.status, method.summary):
        assert words in shown
    for option in method.options:
        assert f"--set {option.name}=" in shown
        assert option.help in shown
        assert option.check.expected in shown
    for need in method.needs:
        assert need in shown
    assert ("approximate" in shown) == (not method.exact_below_full_k)


def test_the_list_has_needs_and_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    for name, method in methods.items():
        assert method.source in lines[name]
    assert "two views" in lines["mlkd"]
    assert "samples" in lines["rskd"]
    assert "class weights" in lines["kd-sim"]
    assert run(["methods", "--json"]) == 0
    assert [item["name"] for item in json.loads(capsys.readouterr().out)] == list(methods)
