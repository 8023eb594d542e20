"""`kdcache report`: a store, or finished runs, as one HTML page; runs also as a table on stdout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdcache.cli.options import json_option, option, subcommand
from kdcache.cli.output import facts, human_bytes, write_json, write_result


@subcommand("report")
@click.argument("places", nargs=-1, metavar="[STORE | RUN..]")
@option(
    "--html", kind=click.Path(path_type=Path), metavar="FILE", help="The page; of a store NAME-report.html if not said."
)
@option("--dataset", metavar="NAME|CARD", default="", help="Data card, to show a store's contradicted examples.")
@option("--data-root", kind=click.Path(path_type=Path), metavar="DIR", help="Folder with the data set's files.")
@json_option
def command(*, places: tuple[str, ...], html: Path | None, dataset: str, data_root: Path | None, as_json: bool) -> None:
    """Draw a store or finished runs as one HTML page.

    STORE: its statistics (kdcache stats) as plots, in a file that needs no network. RUN is a run folder or a folder of
    run folders; without one, kdcache-runs/ here: the methods are compared in a table, and with --html in a page with
    training curves. Runs of the same seed are paired with plain cross-entropy (ce) where it is among them.
    """
    from kdcache.pages.write import is_store

    stores = [place for place in places if is_store(place)]
    if len(stores) > 1 or (stores and len(places) > 1):
        raise click.UsageError("expected one store, or runs; report each store on its own")
    if stores:
        _store(stores[0], html, dataset, data_root, as_json=as_json)
    elif dataset or data_root:
        raise click.UsageError("--dataset and --data-root are for a store's report")
    else:
        _runs(places, html, as_json=as_json)


def _store(place: str, html: Path | None, dataset: str, data_root: Path | None, *, as_json: bool) -> None:
    from kdcache.pages.write import write_store_report

    file, stats = write_store_report(place, out=html, dataset=dataset, data_root=data_root)
    if as_json:
        write_json({"html": str(file), "stats": stats.to_json()})
        return
    shown = [("report", str(file)), ("size", human_bytes(file.stat().st_size))]
    write_result(facts([*shown, ("next", f"open it in a browser; the same in text: kdcache stats {place}")]))


def _runs(places: tuple[str, ...], html: Path | None, *, as_json: bool) -> None:
    from kdcache.pages.write import write_runs_report
    from kdcache.report import compare_runs, text_table
    from kdcache.training.runs import DEFAULT_FOLDER

    folders = places or (DEFAULT_FOLDER,)
    rows: Any = compare_runs(folders)
    file = write_runs_report(folders, out=html) if html is not None else None
    if as_json:
        write_json(rows)
        return
    write_result(text_table(rows) + (f"\n\n{facts([('report', str(file))])}" if file is not None else ""))
