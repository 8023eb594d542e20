"""`kdcache pull`: a store or a part of it into a local folder, its result to text."""

from __future__ import annotations

import click

from kdcache.cli.options import json_option, option, subcommand
from kdcache.cli.output import facts, human_bytes, write_json, write_result


@subcommand("pull")
@click.argument("url")
@click.argument("folder", metavar="DIR")
@option("--views", metavar="0:V", default="", help="Only the first V views; the others are not moved.")
@option("--topk", kind=click.IntRange(min=1), metavar="K", help="Keep K classes per row, narrowed after the transfer.")
@json_option
def command(*, url: str, folder: str, views: str, topk: int | None, as_json: bool) -> None:
    """Copy the store at URL (s3://, gs://, az://, http(s):// or a path) to the local folder DIR.

    Every block is compared with the ledger. Interrupted, the same command continues. A part (--views, --topk) is a
    store of its own that names its parent's digest.
    """
    from kdcache.pull import PullConfig, leading_views, pull

    done = pull(PullConfig(source=url, folder=folder, views=leading_views(views) if views else None, topk=topk))
    if as_json:
        write_json(done)
        return
    moved = "was there already" if done.already else f"{human_bytes(done.bytes_moved)} in {done.seconds:.1f} s"
    pairs = [("store", done.store), ("from", done.source), ("moved", moved), ("digest", done.root_digest)]
    pairs += [("part of", done.parent)] if done.parent else []
    write_result(facts([*pairs, ("next", f"kdcache distill --store {done.store}")]))
