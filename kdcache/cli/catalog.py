"""`kdcache catalog`: the stores a team shares: add, list, find, show, remove, build."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from kdcache.cli.options import Command, json_option, option
from kdcache.cli.output import facts, human_bytes, table, write_json, write_result

if TYPE_CHECKING:
    from kdcache.store.catalog import Catalog, CatalogEntry

catalog_option = option(
    "--catalog", metavar="URL", default="", help="Folder or URL of the catalogue; otherwise KDCACHE_CATALOG."
)


PARTS = {  # what each does, in the width that `kdcache catalog --help` has
    "add": "Copy a sealed store into the catalogue and register it.",
    "list": "List the stores, newest first.",
    "find": "List the stores that have what is asked for.",
    "show": "Show one entry.",
    "remove": "Take an entry out; its store stays.",
    "build": "Write index.html, index.json and the reports.",
}


@click.group("catalog", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Find and share stores: a folder or bucket prefix of stores with one small JSON for each.

    `kdcache dump-teacher --catalog URL` looks here first and registers what it makes.
    """


def _part(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    return command.command(
        name,
        cls=Command,
        short_help=PARTS[name],
        context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    )


@_part("add")
@click.argument("store")
@catalog_option
@json_option
def add(*, store: str, catalog: str, as_json: bool) -> None:
    """Copy a sealed STORE into the catalogue, verified, and register it; a store that lies there is only registered."""
    from kdcache.sharing import add_store

    entry = add_store(_opened(catalog), store)
    write_json(entry) if as_json else write_result(_facts(_opened(catalog), entry))


@_part("list")
@catalog_option
@json_option
def list_(*, catalog: str, as_json: bool) -> None:
    """List the stores of the catalogue, newest first."""
    opened = _there(catalog)
    _show_entries(opened, opened.entries(), as_json=as_json)


@_part("find")
@catalog_option
@option("--teacher", metavar="TEXT", default="", help="Part of the teacher's name or weights.")
@option("--dataset", metavar="TEXT", default="", help="Part of the data set's name or split.")
@option("--views", kind=click.IntRange(min=1), metavar="V", help="At least this many views.")
@option("--topk", kind=click.IntRange(min=1), metavar="K", help="At least this many classes per row.")
@option("--augment", metavar="POLICY", default="", help="Views of this policy.")
@option("--key", metavar="HEX", default="", help="Store key, or its beginning.")
@json_option
def find(
    *,
    catalog: str,
    teacher: str,
    dataset: str,
    views: int | None,
    topk: int | None,
    augment: str,
    key: str,
    as_json: bool,
) -> int:
    """List the stores that have what is asked for; exit code 1 when there is none."""
    opened = _there(catalog)
    found = [
        entry
        for entry in opened.entries(key=key[:16])
        if teacher.lower() in f"{entry.teacher} {entry.weights}".lower()
        and dataset.lower() in f"{entry.dataset} {entry.split}".lower()
        and entry.views >= (views or 1)
        and entry.topk >= (topk or 1)
        and augment in ("", entry.policy)
        and entry.store_key.startswith(key)
    ]
    _show_entries(opened, found, as_json=as_json)
    return 0 if found else 1


@_part("show")
@click.argument("name")
@catalog_option
@json_option
def show(*, name: str, catalog: str, as_json: bool) -> None:
    """Show one entry; NAME is a store's name, digest or key, or the beginning of one."""
    opened = _opened(catalog)
    entry = opened.entry(name)
    write_json(entry) if as_json else write_result(_facts(opened, entry))


@_part("remove")
@click.argument("name")
@catalog_option
@option("--with-store", is_flag=True, default=False, help="Delete the store's files as well.")
@json_option
def remove(*, name: str, catalog: str, with_store: bool, as_json: bool) -> None:
    """Take an entry out of the catalogue; its store stays unless --with-store is given."""
    opened = _opened(catalog)
    entry = opened.entry(name)
    count = opened.remove(entry, with_store=with_store)
    left = "" if with_store else f"; its store stays at {opened.place_of(entry)}"
    gone = {"removed": entry.name, "files": count}
    write_json(gone) if as_json else write_result(f"removed {entry.name} ({entry.store}){left}")


@_part("build")
@catalog_option
@option("--no-reports", is_flag=True, default=False, help="Do not draw the reports of stores that have none yet.")
@json_option
def build(*, catalog: str, no_reports: bool, as_json: bool) -> None:
    """Write index.html and index.json, which any web server or bucket shows, and a report for every store.

    Build again after adding stores: the pages are a picture of what is there now; no other command needs them.
    """
    from kdcache.pages.catalog_build import build_catalog

    built = build_catalog(_opened(catalog), reports=not no_reports)
    if as_json:
        write_json(built)
        return
    pairs = [
        ("page", built.page),
        ("stores", str(built.stores)),
        ("reports", f"{built.reports_written} written, {built.reports_kept} kept"),
        ("next", f"open {built.page}" + ("" if "://" in built.page else "; any web server shows the folder")),
    ]
    write_result(facts(pairs))


def _opened(place: str) -> Catalog:
    from kdcache.errors import ConfigError
    from kdcache.store.catalog import Catalog

    if not place:
        raise ConfigError(
            "no catalogue was named; expected --catalog URL or KDCACHE_CATALOG",
            hint="a catalogue is a folder or an object-store prefix, for example --catalog s3://bucket/kd",
        )
    return Catalog(place)


def _there(place: str) -> Catalog:
    """The catalogue, refused where a folder that was named does not exist: a typing error is not an empty catalogue."""
    from kdcache.errors import NotFoundError

    opened = _opened(place)
    folder = opened.location.folder
    if folder is not None and not folder.is_dir():
        raise NotFoundError(
            f"{opened}: no such catalogue", hint=f"kdcache catalog add STORE --catalog {opened} makes it"
        )
    return opened


def _show_entries(catalog: Catalog, entries: Sequence[CatalogEntry], *, as_json: bool) -> None:
    if as_json:
        write_json(entries)
        return
    rows = [
        [
            entry.name,
            f"{entry.dataset} ({entry.split})",
            entry.teacher,
            "" if entry.top1 is None else f"{entry.top1:.1%}",
            f"{entry.views} {entry.policy}",
            str(entry.topk),
            human_bytes(entry.bytes),
            f"{entry.added[:10]} {entry.by}",
        ]
        for entry in entries
    ]
    header = ["name", "data", "teacher", "top-1", "views", "top-k", "size", "added"]
    write_result(table(rows, header=header, right=[3, 5, 6]) if rows else f"{catalog}: no store")


def _facts(catalog: Catalog, entry: CatalogEntry) -> str:
    quality = "" if entry.top1 is None or entry.nll is None else f"top-1 {entry.top1:.1%}, NLL {entry.nll:.3f} nats"
    place = catalog.place_of(entry)
    pairs = [
        ("name", entry.name),
        ("store", str(place)),
        ("data", f"{entry.dataset} ({entry.split}), {entry.rows:,} rows, {entry.classes} classes"),
        ("teacher", f"{entry.teacher}, weights {entry.weights or 'none'}, {entry.numeric_mode}"),
        ("quality", quality),
        ("views", f"{entry.views} ({entry.policy})"),
        ("kept", f"top {entry.topk}, precision {entry.precision}, {', '.join(entry.fields) or 'no extras'}"),
        ("size", human_bytes(entry.bytes)),
        ("parents", ", ".join(str(parent.get("root_digest", ""))[:16] for parent in entry.parents)),
        ("added", f"{entry.added} by {entry.by}"),
        ("key", entry.store_key),
        ("digest", entry.root_digest),
        ("next", f"kdcache distill --store {place}"),
    ]
    return facts([pair for pair in pairs if pair[1]])
