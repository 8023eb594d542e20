"""`catalog build`: index.html, index.json and a report for every store, written into the catalogue itself.

Everything written is a picture of the entries; nothing reads it but browsers, and web servers that cannot list.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdcache.errors import KdcacheError
from kdcache.pages.catalog_page import catalog_page, report_name
from kdcache.pages.store_page import store_page
from kdcache.pages.write import CONTRADICTIONS
from kdcache.progress import note
from kdcache.stats import store_stats
from kdcache.store.catalog import Catalog


@dataclass(frozen=True, kw_only=True)
class Built:
    """What was written: place of the page, how many stores it shows, how many reports are new or were there."""

    page: str
    stores: int
    reports_written: int
    reports_kept: int


def build_catalog(catalog: Catalog, *, reports: bool = True) -> Built:
    """Write the pages of a catalogue.

    Args:
        catalog: a place that can be written.
        reports: draw a report for every store that has none; reads each of these stores once.

    Raises:
        ConfigError: a web server. RemoteError, ResourceError: the place cannot be written. A store that cannot be read
            is told and listed without a report.
    """
    catalog.location.require_writable()
    entries = catalog.write_index()
    known = {item.name for item in catalog.location.list("reports")}
    kept = {report_name(entry) for entry in entries} & known
    written = set()
    for entry in entries if reports else ():
        name = report_name(entry)
        if name in kept:
            continue
        try:
            stats = store_stats(str(catalog.place_of(entry)), contradictions=CONTRADICTIONS)
        except KdcacheError as error:
            note(f"{catalog}: no report of {entry.store}: {error.message}")
            continue
        catalog.location.put(name, store_page(stats).encode())
        written.add(name)
    catalog.location.put("index.html", catalog_page(str(catalog), entries, reports=kept | written).encode())
    return Built(
        page=f"{str(catalog).rstrip('/')}/index.html",
        stores=len(entries),
        reports_written=len(written),
        reports_kept=len(kept),
    )
