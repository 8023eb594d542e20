"""`kdcache report`: finished runs in one table."""

from __future__ import annotations

import click

from kdcache.cli.options import json_option, subcommand
from kdcache.cli.output import write_json, write_result


@subcommand("report")
@click.argument("runs", nargs=-1, metavar="[RUN..]")
@json_option
def command(*, runs: tuple[str, ...], as_json: bool) -> None:
    """Compare finished runs in one table.

    RUN is a run folder or a folder of run folders; without one, kdcache-runs/ here. Runs of the same seed are paired
    with plain cross-entropy (ce) where it is among them.
    """
    from kdcache.report import compare_runs, text_table
    from kdcache.training.runs import DEFAULT_FOLDER

    rows = compare_runs(runs or (DEFAULT_FOLDER,))
    write_json(rows) if as_json else write_result(text_table(rows))
