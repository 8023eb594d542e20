"""`kdcache merge`: the stores of several teachers as one store of their mean opinion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kdcache.cli.options import json_option, option, subcommand, workers_options
from kdcache.cli.output import facts, write_json, write_result

if TYPE_CHECKING:
    from kdcache.merge import MergeResult


@subcommand("merge")
@click.argument("stores", nargs=-1, required=True, metavar="STORE STORE...")
@option("--out", default="", metavar="STORE", help="Where the new store goes (needed).")
@option("--topk", kind=click.IntRange(min=1), metavar="K", help="Classes kept per row; otherwise the smallest k.")
@option(
    "--precision", kind=click.Choice(["exact", "default", "compact"]), help="How finely; otherwise as the coarsest."
)
@workers_options()
@json_option
def command(
    *,
    stores: tuple[str, ...],
    out: str,
    topk: int | None,
    precision: Any,
    workers: int,
    dask: str,
    as_json: bool,
) -> None:
    """Average the probabilities (T=1) of several teachers over the same rows and views into one store.

    Exact when every store keeps all classes; otherwise approximate, and the result says by how much at most.
    The store is the same whoever shares the blocks: this process, --workers or --dask. Interrupted, the same command
    continues.
    """
    from kdcache.merge import MergeConfig, merge

    if not out:
        raise click.UsageError("--out STORE is needed: a merged store is a store of its own")
    config = MergeConfig(stores=stores, out=out, topk=topk, precision=precision, workers=workers, dask=dask)
    result = merge(config)
    write_json(result) if as_json else write_result(_text(result))


def _text(result: MergeResult) -> str:
    error = f"approximate: at most {result.bound_mean:.2g} (mean) and {result.bound_max:.2g} (worst row) of probability"
    quality = result.quality
    pairs = [
        ("store", result.store),
        ("members", str(len(result.parents))),
        ("mean", "exact: every store keeps all classes" if result.exact else f"{error} in another place"),
        ("ensemble", f"top-1 {quality['top1']:.1%}, NLL {quality['nll']:.3f} nats"),
        ("key", result.store_key),
        ("digest", result.root_digest),
        ("next", f"kdcache distill --store {result.store}"),
    ]
    return facts(pairs)
