"""`kdcache verify`: reads a store against its ledger; the exit code is the answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcache.cli.options import json_option, option, subcommand, workers_options
from kdcache.cli.output import write_json, write_result
from kdcache.progress import counted

if TYPE_CHECKING:
    from kdcache.store.verify import VerifyReport


@subcommand("verify")
@click.argument("store", required=False)
@option("--deep", is_flag=True, default=False, help="Also check the numbers: classes in range, order, probabilities.")
@option("--replay", kind=click.IntRange(min=1), metavar="ROWS", help="Ask the teacher again about this many rows.")
@option("--views", is_flag=True, default=False, help="Draw the recorded views again; needs the data, no teacher.")
@option("--dataset", metavar="NAME|CARD", default="", help="Data card; otherwise the one the store names.")
@option("--data-root", kind=click.Path(path_type=Path), metavar="DIR", help="Folder with the data set's files.")
@option("--teacher", metavar="SOURCE", default="", help="The store's teacher; otherwise the card's.")
@option("--weights", metavar="FILE|ENUM", default="", help="Its weights; otherwise the card's.")
@option("--init-seed", kind=int, metavar="SEED", help="It had random weights from this seed.")
@option("--augment", metavar="POLICY", default="", help="FILE.py:factory, when the views came from a user's transform.")
@option("--allow-view-drift", is_flag=True, default=False, help="Report views that drifted instead of refusing them.")
@option("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N.")
@workers_options()
@json_option
def command(
    *,
    store: str | None,
    deep: bool,
    replay: int | None,
    views: bool,
    allow_view_drift: bool,
    workers: int,
    dask: str,
    as_json: bool,
    **given: Any,
) -> int:
    """Check every byte of a store against its ledger.

    Exit code 0: sound; 1: --replay or --views says no; 3: not finished; 4: bytes or structure are damaged. STORE may be
    left out when there is exactly one under kdcache-store/ here. Blocks are shared by --workers or --dask; what is
    asked of a teacher is not.
    """
    from kdcache.store.find import only_store
    from kdcache.workers.store_work import verify
    from kdcache.workers.tasks import Workforce

    force = Workforce(workers=workers, dask=dask)
    location = store if store is not None else only_store().location
    report = verify(location, deep=deep, force=force)
    again = []
    if report.exit_code == 0 and (replay is not None or views):
        from kdcache.replay import config_for_replay, replay_rows, replay_views

        config = config_for_replay(**given)
        if views:
            again.append(replay_views(location, config, allow_drift=allow_view_drift))
        if replay is not None:
            again.append(replay_rows(location, replay, config))
    if as_json:
        write_json({**report_json(report), "again": [{"ok": item.ok, "said": str(item)} for item in again]})
    else:
        write_result("\n".join([_text(report), *map(str, again)]))
    return report.exit_code or int(not all(item.ok for item in again))


def report_json(report: VerifyReport) -> dict[str, Any]:
    """The report as one JSON object."""
    from kdcache.canonical import to_json

    plain: dict[str, Any] = to_json(report)
    return plain


def _text(report: VerifyReport) -> str:
    checked = f"{report.blocks_checked} of {report.blocks_total} blocks match the ledger"
    if not report.problems:
        state = "sound" if report.complete else "not finished; what is there is sound"
        return f"{report.location}: {state}, {checked}" + (f", root digest {report.root_digest}" * report.complete)
    lines = [f"{report.location}: {counted(len(report.problems), 'problem')}, {checked}"]
    for problem in report.problems:
        lines.append(f"  {problem}")
    lines += [f"  next: {repair}" for repair in dict.fromkeys(problem.repair for problem in report.problems) if repair]
    return "\n".join(lines)
