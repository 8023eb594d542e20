"""`kdcache verify`: reads a store against its ledger; the exit code is the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kdcache.cli.options import json_option, option, subcommand
from kdcache.cli.output import write_json, write_result

if TYPE_CHECKING:
    from kdcache.store.verify import VerifyReport


@subcommand("verify")
@click.argument("store", required=False)
@option("--deep", is_flag=True, default=False, help="Also check the numbers: classes in range, order, probabilities.")
@json_option
def command(*, store: str | None, deep: bool, as_json: bool) -> int:
    """Check every byte of a store against its ledger.

    Exit code 0: sound; 3: not finished; 4: bytes or structure are damaged. STORE may be left out when there is exactly
    one under kdcache-store/ here.
    """
    from kdcache.store.find import only_store
    from kdcache.store.verify import verify_store

    report = verify_store(store if store is not None else only_store().location, deep=deep)
    write_json(report) if as_json else write_result(_text(report))
    return report.exit_code


def _text(report: VerifyReport) -> str:
    checked = f"{report.blocks_checked} of {report.blocks_total} blocks match the ledger"
    if not report.problems:
        state = "sound" if report.complete else "not finished; what is there is sound"
        return f"{report.location}: {state}, {checked}" + (f", root digest {report.root_digest}" * report.complete)
    lines = [f"{report.location}: {len(report.problems)} problems, {checked}"]
    for problem in report.problems:
        lines.append(f"  {problem}")
    lines += [f"  next: {repair}" for repair in dict.fromkeys(problem.repair for problem in report.problems) if repair]
    return "\n".join(lines)
