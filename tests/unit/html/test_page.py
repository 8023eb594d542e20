"""A page is one file that loads nothing: the policy names its script, names are text, tables need no script."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from kdcache.html.markup import element
from kdcache.html.page import Column, Section, command, page, table, tiles
from tests.unit.html.test_markup import HOSTILE, read


def _page(name: str = "x") -> str:
    rows = [[name, "1"], ["b", "2"]]
    body = table([Column(title=name), Column(title="n", numeric=True, unit="m")], rows, caption=name, search=True)
    return page(name, [Section(title=name, anchor="a", body=body, lead=name)], subtitle=name, top=tiles([(name,) * 3]))


def test_the_policy_allows_the_pages_script_and_nothing_else() -> None:
    source = _page()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', source)
    script = re.search(r"<script>(.*)</script>", source, flags=re.DOTALL)
    assert policy is not None
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script.group(1).encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy.group(1)
    assert policy.group(1).startswith("default-src 'none'")


def test_nothing_is_loaded_from_anywhere() -> None:
    source = _page()
    assert not re.findall(r"(?:src|href)=\"(?!#)", source)
    assert "url(" not in source
    assert "@import" not in source
    assert not re.findall(r"https?://", source)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_add_no_element_and_no_attribute(name: str) -> None:
    plain, hostile = read(_page("x")), read(_page(name))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    for (_, expected), (_, found) in zip(plain.tags, hostile.tags, strict=True):
        assert [key for key, _ in found] == [key for key, _ in expected]


def test_sort_keys_are_given_or_left_to_the_text() -> None:
    columns = [Column(title="size", numeric=True)]
    assert 'data-key="1000"' in table(columns, [["1 kB"]], caption="c", keys=[[1000]])
    assert "data-key" not in table(columns, [["1 kB"]], caption="c")


def test_a_command_can_be_copied_and_is_text() -> None:
    shown = command("kdcache pull 's3://b/<x>' .")
    assert read(shown).words.startswith("kdcache pull 's3://b/<x>' .")
    assert element("b") not in shown
