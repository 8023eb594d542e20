"""Escaping by construction: whatever a name is, a parser reads it back as text and nothing else."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.html.markup import Html, element, is_safe_link, join, text

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='alert(1)",
    "</svg></style><b>",
    "&lt;",
)


class Reader(HTMLParser):
    """Tags, attributes and text as a browser's tokenizer sees them."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.words += data


def read(source: str) -> Reader:
    reader = Reader()
    reader.feed(source)
    reader.close()
    return reader


@given(st.text())
def test_any_text_comes_back_as_the_same_text_and_no_tag(words: str) -> None:
    found = read(element("p", {"title": words}, words))
    expected = read(element("p", {}, text(words)))
    assert [tag for tag, _ in found.tags] == ["p"]
    assert found.words == expected.words
    plain = all(character.isprintable() or character in "\t\n" for character in words)
    if plain and not any("\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069" for character in words):
        assert found.words == words
        assert found.tags[0][1] == [("title", words)]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text_in_content_and_attributes(name: str) -> None:
    found = read(element("div", {"data-tip": name}, name, [name, element("b", {}, name)]))
    assert [tag for tag, _ in found.tags] == ["div", "b"]
    assert found.tags[0][1] == [("data-tip", name)]
    assert found.words == 3 * name


def test_only_html_passes_unescaped_and_joining_with_text_loses_that() -> None:
    assert join([Html("<b>x</b>"), "<i>"]) == "<b>x</b>&lt;i&gt;"
    assert element("p", {}, Html("<b>") + "<i>") == "<p>&lt;b&gt;&lt;i&gt;</p>"
    assert join([None, 3, 0.5]) == "30.5"


def test_direction_overrides_and_control_characters_are_replaced() -> None:
    assert text("a\u202egnp.exe\x00\x1b[31m") == "a\ufffdgnp.exe\ufffd\ufffd[31m"


@pytest.mark.parametrize("attribute", ["onclick", "ONLOAD", "srcdoc", "formaction", "x y", 'a"b', ""])
def test_attributes_that_run_code_are_refused(attribute: str) -> None:
    with pytest.raises(ValueError, match="attribute"):
        element("p", {attribute: "x"})


@pytest.mark.parametrize("name", ["script", "style", "iframe", "object", "embed", "a b", "<p"])
def test_elements_that_run_code_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="element"):
        element(name)


@pytest.mark.parametrize(
    ("link", "safe"),
    [
        ("#part", True),
        ("stores/a/report.html", True),
        ("a:b/report.html", False),
        ("https://example.org/x", True),
        ("javascript:alert(1)", False),
        (" JavaScript:alert(1)", False),
        ("data:text/html,<b>", False),
        ("data:image/png;base64,AAAA", True),
        ("//example.org/x", False),
        ("vbscript:x", False),
        ("file:///etc/passwd", False),
    ],
)
def test_links_lead_to_pages_and_run_nothing(link: str, safe: bool) -> None:
    assert is_safe_link(link) is safe
    if safe:
        assert read(element("a", {"href": link}, "x")).tags == [("a", [("href", link)])]
    else:
        with pytest.raises(ValueError, match="link"):
            element("a", {"href": link}, "x")
