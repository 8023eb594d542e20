"""`kdcache push`: a sealed store to a URL, its result to text."""

from __future__ import annotations

import click

from kdcache.cli.options import json_option, subcommand, workers_options
from kdcache.cli.output import facts, human_bytes, write_json, write_result


@subcommand("push")
@click.argument("store")
@click.argument("url")
@workers_options("Threads that check and send blocks.")
@json_option
def command(*, store: str, url: str, workers: int, dask: str, as_json: bool) -> None:
    """Copy a sealed store to URL (s3://, gs://, az:// or a folder) and publish it there.

    URL is the store's own place, not a folder of stores. Readers see it when all of it has arrived. Interrupted, the
    same command continues. What is published never changes: another store at URL is refused.
    """
    from kdcache.workers.store_work import push
    from kdcache.workers.tasks import Workforce

    done = push(store, url, force=Workforce(workers=workers, dask=dask))
    if as_json:
        write_json(done)
        return
    moved = "was there already" if done.already else f"{human_bytes(done.bytes_moved)} in {done.seconds:.1f} s"
    pairs = [("store", done.store), ("moved", moved), ("digest", done.root_digest)]
    write_result(facts([*pairs, ("next", f"kdcache distill --store {done.store}")]))
