"""`kdcache derive`: a part of a store as a store of its own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from kdcache.cli.options import json_option, option, subcommand, workers_options
from kdcache.cli.output import facts, write_json, write_result

if TYPE_CHECKING:
    from kdcache.derive import DeriveResult


class Range(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """`A:B`, `:B` or a plain number B: whole numbers, A before B."""

    name = "A:B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """(start, stop)."""
        match = re.fullmatch(r"(?:(\d*):)?(\d+)", str(value).strip())
        if match is None or int(match[1] or 0) >= int(match[2]):
            self.fail(f"expected A:B with whole numbers, A before B; found {value!r}", param, ctx)
        return int(match[1] or 0), int(match[2])


@subcommand("derive")
@click.argument("store")
@click.argument("out")
@option(
    "--topk", kind=click.IntRange(min=1), metavar="K", help="Keep this many classes a row; the rest joins the tail."
)
@option("--views", kind=Range(), help="Keep the first views: 4 or 0:4.")
@option("--rows", kind=Range(), help="Keep these rows: they become rows 0 and on of split NAME[A:B].")
@option("--precision", kind=click.Choice(["exact", "default", "compact"]), help="Keep coarser numbers.")
@option("--class-mean", kind=float, metavar="T", help="Also keep each class's mean p^T, which kd-sim then reads.")
@workers_options()
@json_option
def command(
    *,
    store: str,
    out: str,
    topk: int | None,
    views: tuple[int, int] | None,
    rows: tuple[int, int] | None,
    precision: Any,
    class_mean: float | None,
    workers: int,
    dask: str,
    as_json: bool,
) -> None:
    """Write a part of STORE to OUT without the teacher: fewer classes, views or rows, or coarser numbers.

    OUT is sealed and verified like any store and names STORE's digest as its parent. STORE is not changed.
    OUT is the same whoever shares the blocks: this process, --workers or --dask. Interrupted, the same command
    continues.
    """
    from kdcache.derive import DeriveConfig, derive

    if views is not None and views[0] != 0:
        raise click.UsageError(
            f"--views {views[0]}:{views[1]}: expected the first views (0:B); view 0 of a store is the view drawn as "
            "number 0, and another one in its place would be taken for it"
        )
    config = DeriveConfig(
        store=store,
        out=out,
        topk=topk,
        views=views[1] if views else None,
        rows=rows,
        precision=precision,
        class_mean=class_mean,
        workers=workers,
        dask=dask,
    )
    result = derive(config)
    write_json(result) if as_json else write_result(_text(result))


def _text(result: DeriveResult) -> str:
    pairs = [
        ("store", result.store),
        (
            "made",
            f"{result.rows_written:,} rows, no teacher was run" if result.rows_written else "reused, it was there",
        ),
        ("parent", result.parent),
        ("key", result.store_key),
        ("digest", result.root_digest),
        ("next", f"kdcache distill --store {result.store}"),
    ]
    return facts(pairs)
