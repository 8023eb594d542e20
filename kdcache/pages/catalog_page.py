"""A catalogue as one page that any web server or bucket shows: what there is, and the command that uses it.

Every name comes from an entry, that is from strangers; `html.markup` escapes all of it. Nothing is requested here.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence

from kdcache.html.markup import Child, Html, element
from kdcache.html.page import Column, Section, command, page, table, tiles
from kdcache.pages.wording import bytes_text
from kdcache.store.catalog import CatalogEntry

COLUMNS = (
    Column(title="Data"),
    Column(title="Teacher"),
    Column(title="Use"),
    Column(title="Top-1", numeric=True, unit="%"),
    Column(title="NLL", numeric=True, unit="nats"),
    Column(title="Views", numeric=True),
    Column(title="Policy"),
    Column(title="k", numeric=True),
    Column(title="Rows", numeric=True),
    Column(title="Size", numeric=True),
    Column(title="Added"),
)


def report_name(entry: CatalogEntry) -> str:
    """Where the report of an entry's store lies under the catalogue."""
    return f"reports/{entry.name}.html"


def catalog_page(place: str, entries: Sequence[CatalogEntry], *, reports: Collection[str] = ()) -> str:
    """The page of a catalogue.

    Args:
        place: path or URL of the catalogue, free of credentials.
        entries: what there is, in the order of the page.
        reports: names under the catalogue (`report_name`) of the reports that exist; only these are linked.
    """
    rows = [_cells(place, entry, reports) for entry in entries]
    keys = [_keys(entry) for entry in entries]
    listing = table(COLUMNS, rows, caption="The stores of this catalogue", search=True, keys=keys)
    empty = element(
        "p", {}, "Nothing is here yet. ", element("code", {}, "kdcache catalog add STORE"), " adds a store."
    )
    use = element(
        "div",
        {},
        element("p", {}, "A dump that a store here covers is not run again:"),
        command(f"kdcache dump-teacher --catalog {shlex.quote(place)}"),
        element("p", {}, "A store that was made elsewhere is added with:"),
        command(f"kdcache catalog add STORE --catalog {shlex.quote(place)}"),
    )
    data = {(entry.dataset, entry.split) for entry in entries}
    figures = [
        ("Stores", str(len(entries)), ""),
        ("Teachers", str(len({entry.teacher for entry in entries})), ""),
        ("Data sets", str(len(data)), ""),
        ("Size", bytes_text(sum(entry.bytes for entry in entries)), "of all stores"),
    ]
    sections = [
        Section(title="Stores", anchor="stores", body=listing if entries else empty),
        Section(title="Use it", anchor="use", body=use),
    ]
    return page("Teacher stores", sections, subtitle=place, top=tiles(figures))


def _cells(place: str, entry: CatalogEntry, reports: Collection[str]) -> list[Child]:
    data: Child = f"{entry.dataset} ({entry.split})"
    where = f"{place.rstrip('/')}/{entry.store}"
    if report_name(entry) in reports:
        data = element("a", {"href": report_name(entry), "class": "line"}, data)
    weights = element("small", {}, " ", entry.weights) if entry.weights not in ("", "none") else None
    return [
        data,
        _joined(entry.teacher, weights),
        command(f"kdcache distill --store {shlex.quote(where)}"),
        "" if entry.top1 is None else f"{100 * entry.top1:.1f}",
        "" if entry.nll is None else f"{entry.nll:.3f}",
        str(entry.views),
        entry.policy,
        str(entry.topk),
        f"{entry.rows:,}",
        bytes_text(entry.bytes),
        _joined(entry.added[:10], element("small", {}, " ", entry.by)),
    ]


def _joined(first: str, second: Html | None) -> Html:
    return element("span", {"class": "line"}, first, second)


def _keys(entry: CatalogEntry) -> list[float | None]:
    numbers: list[float | None] = [None] * len(COLUMNS)
    numbers[3] = None if entry.top1 is None else 100 * entry.top1
    numbers[4] = entry.nll
    numbers[5], numbers[7] = float(entry.views), float(entry.topk)
    numbers[8], numbers[9] = float(entry.rows), float(entry.bytes)
    return numbers
