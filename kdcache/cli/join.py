"""`kdcache join`: stores of neighbouring rows of one split as one store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdcache.cli.options import json_option, option, subcommand, workers_options
from kdcache.cli.output import facts, write_json, write_result

if TYPE_CHECKING:
    from kdcache.join import JoinResult


@subcommand("join")
@click.argument("stores", nargs=-1, required=True, metavar="PART PART...")
@option("--out", default="", metavar="STORE", help="Where the new store goes (needed).")
@option("--dataset", default="", metavar="NAME|CARD", help="Read this data and prove the parts by it.")
@option("--data-root", kind=click.Path(path_type=Path), metavar="DIR", help="Where the data is.")
@workers_options()
@json_option
def command(
    *, stores: tuple[str, ...], out: str, dataset: str, data_root: Path | None, workers: int, dask: str, as_json: bool
) -> None:
    """Put stores of neighbouring rows together: train[0:1000] and train[1000:2000] become train[0:2000].

    The parts are of one teacher, with the same views, k and fields, dumped with --split 'NAME[A:B]' or cut with
    derive --rows, in any order. Rows are copied and verified, nothing is computed again and no teacher is needed.
    The store is the same whoever shares the blocks: this process, --workers or --dask. Interrupted, the same command
    continues.
    """
    from kdcache.join import JoinConfig, join

    if not out:
        raise click.UsageError("--out STORE is needed: a joined store is a store of its own")
    result = join(JoinConfig(stores=stores, out=out, dataset=dataset, data_root=data_root, workers=workers, dask=dask))
    write_json(result) if as_json else write_result(_text(result))


def _text(result: JoinResult) -> str:
    pairs = [
        ("store", result.store),
        ("joined", f"{len(result.parents)} parts, {result.rows:,} rows of {result.split}; no teacher was run"),
        ("teacher", f"top-1 {result.quality['top1']:.1%}, NLL {result.quality['nll']:.3f} nats"),
        ("key", result.store_key),
        ("digest", result.root_digest),
        ("next", f"kdcache distill --store {result.store}"),
    ]
    return facts(pairs)
