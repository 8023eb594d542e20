"""Report pages in a real headless Chromium, from file://: nothing is loaded, nothing complains, all can be used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kdcache.pages.catalog_build import build_catalog
from kdcache.pages.write import write_runs_report, write_store_report
from kdcache.store.catalog import Catalog
from kdcache.store.manifest_file import read_manifest
from tests.logit_store import random_logits, write_logit_store
from tests.unit.html.test_markup import HOSTILE
from tests.unit.pages.test_runs_page import BINS, _run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")

CHROMIUM = os.environ.get("KDCACHE_TEST_CHROMIUM") or next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 900}


@dataclass
class Opened:
    """A page with what it said and asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store's page and a runs' page, with names that would be markup if they could."""
    folder = tmp_path_factory.mktemp("chromium")
    classes = len(HOSTILE) + 20
    first, labels = random_logits(400, classes)
    names = (*HOSTILE, *(f"a class with quite a long name {number}" for number in range(20)))
    second = first + random_logits(400, classes, seed=1)[0]
    store = write_logit_store(
        folder / "store.zarr", [first, second], labels, topk=4, class_names=names, name=HOSTILE[0], source=HOSTILE[1]
    )
    runs = folder / "runs"
    runs.mkdir()
    for seed in range(3):
        _run(runs, "ce", seed, 0.80 + seed / 100)
        _run(runs, "kd", seed, 0.83 + seed / 50, calibration=BINS)
    catalog = Catalog(folder / "team")
    for name, place in (("a", store), ("b", write_logit_store(folder / "b", [first], labels, topk=9, name="plain"))):
        shutil.copytree(place, folder / "team" / "stores" / name)
        catalog.register(read_manifest(place), f"stores/{name}", size=1000 * (1 + ord(name)))
    build_catalog(catalog)
    return {
        "catalog": folder / "team" / "index.html",
        "store": write_store_report(str(store), out=folder / "store.html")[0],
        "runs": write_runs_report([runs], out=folder / "runs.html"),
    }


@contextmanager
def _opened(browser: Any, file: Path, *, size: dict[str, int] = DESKTOP, scheme: str = "light") -> Iterator[Opened]:
    context = browser.new_context(viewport=size, color_scheme=scheme)
    page = context.new_page()
    found = Opened(page=page)
    page.on("console", lambda message: found.complaints.append(message.text))
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("dialog", lambda dialog: (found.complaints.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: found.requests.append(request.url))
    page.goto(file.as_uri())
    yield found
    context.close()


@pytest.mark.parametrize("name", ["store", "runs", "catalog"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_loads_quietly_from_a_file_and_fits_the_screen(
    browser: Any, reports: dict[str, Path], name: str, size: dict[str, int], scheme: str
) -> None:
    with _opened(browser, reports[name], size=size, scheme=scheme) as found:
        page = found.page
        assert found.complaints == []
        assert [url for url in found.requests if not url.startswith("data:")] == [reports[name].as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(int(part) for part in background.removeprefix("rgb(").removesuffix(")").split(","))
        assert (brightness > 600) == (scheme == "light")
        for handle in page.query_selector_all("figure"):  # every picture has its size: nothing collapsed
            box = handle.bounding_box()
            assert box is not None
            assert box["height"] > 60


def test_the_theme_can_be_switched(browser: Any, reports: dict[str, Path]) -> None:
    with _opened(browser, reports["store"]) as found:
        colour = "getComputedStyle(document.body).backgroundColor"
        before = found.page.evaluate(colour)
        found.page.click("#theme")
        assert found.page.evaluate(colour) != before
        found.page.click("#theme")
        assert found.page.evaluate(colour) == before


def test_tables_sort_and_search(browser: Any, reports: dict[str, Path]) -> None:
    with _opened(browser, reports["runs"]) as found:
        table = found.page.locator("#runs .table")
        cells = table.locator("tbody td:nth-child(3)")
        table.get_by_role("button", name="accuracy %").click()
        falling = [float(words) for words in cells.all_inner_texts()]
        assert falling == sorted(falling, reverse=True)
        table.get_by_role("button", name="accuracy %").click()
        assert [float(words) for words in cells.all_inner_texts()] == falling[::-1]
        assert table.locator("th[aria-sort=ascending]").count() == 1
        table.get_by_role("button", name="method").click()
        assert table.locator("tbody td:nth-child(1)").all_inner_texts() == ["ce"] * 3 + ["kd"] * 3
        table.get_by_role("searchbox").fill("KD 2")
        shown = [row for row in table.locator("tbody tr").all() if row.is_visible()]
        assert 0 < len(shown) < 6
        assert all("kd" in row.inner_text() for row in shown)
        assert table.locator(".count").inner_text() == f"{len(shown)} of 6 rows"
        assert found.complaints == []


def test_values_are_read_with_pointer_and_keyboard(browser: Any, reports: dict[str, Path]) -> None:
    with _opened(browser, reports["store"]) as found:
        page, tip = found.page, found.page.locator("#tip")
        chart = page.locator("#topk svg.chart").first
        chart.focus()
        page.keyboard.press("ArrowRight")
        assert tip.is_visible()
        first = tip.inner_text()
        assert first.startswith("classes kept, k: 1\nT = 1: ")
        page.keyboard.press("ArrowRight")
        assert tip.inner_text() != first
        page.keyboard.press("Escape")
        assert not tip.is_visible()
        page.locator("#topk svg.chart rect.hit").nth(2).hover()
        assert tip.inner_text().startswith("classes kept, k: 3")
        heat = page.locator(".heat img")
        heat.scroll_into_view_if_needed()
        heat.hover(position={"x": 3, "y": 3})
        assert "→" in tip.inner_text()
        heat.focus()
        page.keyboard.press("ArrowDown")
        assert "→" in tip.inner_text()
        assert found.complaints == []


def test_names_that_would_be_markup_are_shown_as_they_are(browser: Any, reports: dict[str, Path]) -> None:
    with _opened(browser, reports["store"]) as found:
        words = found.page.inner_text("main")
        for name in HOSTILE:
            assert name in words
        assert found.page.locator("script").count() == 1
        assert found.page.evaluate("document.querySelectorAll('[onerror],[onload],iframe,object').length") == 0
        page = found.page
        page.locator("#classes svg.chart").focus()
        for _ in range(12):  # tooltips are text as well
            page.keyboard.press("ArrowRight")
            assert page.locator("#tip *").count() == 0
        assert found.complaints == []


def test_without_script_everything_can_still_be_read(browser: Any, reports: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False, viewport=DESKTOP)
    page = context.new_page()
    page.goto(reports["store"].as_uri())
    assert page.locator("#classes table tbody tr").last.is_visible()
    page.locator("#topk summary").first.click()
    assert page.locator("#topk details table").first.is_visible()
    context.close()


def test_a_catalogue_is_searched_sorted_and_leads_to_its_reports(browser: Any, reports: dict[str, Path]) -> None:
    with _opened(browser, reports["catalog"]) as found:
        page = found.page
        rows = page.locator("#stores tbody tr")
        assert rows.count() == 2
        page.locator("#stores input[type=search]").fill("plain")
        assert [row for row in rows.all() if row.is_visible()] != []
        assert sum(row.is_visible() for row in rows.all()) == 1
        page.locator("#stores input[type=search]").fill("")
        page.locator("#stores th:nth-child(8) button").click()
        column = page.locator("#stores tbody td:nth-child(8)").all_inner_texts()
        assert column in (["9", "4"], ["4", "9"])
        page.locator("#stores th:nth-child(8) button").click()
        assert page.locator("#stores tbody td:nth-child(8)").all_inner_texts() == column[::-1]
        assert "kdcache distill --store" in page.locator("#stores tbody code").first.inner_text()
        page.locator("#stores tbody a").first.click()
        page.wait_for_selector("figure")
        assert "/reports/" in page.url
        assert found.complaints == []
