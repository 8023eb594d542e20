"""Requests, bytes and seconds of a store on S3: bench id `remote`.

The S3 API is moto's server on 127.0.0.1; a proxy in front of it counts. The seconds are those of this machine, which
runs client, proxy and server; the counts are what they are anywhere. Needs the packages of the extra `dev`.

    python -m benchmarks.remote [--rows 1000000] [--views 2]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import report, seconds_of
from benchmarks.size import manifest_for
from benchmarks.store import CLASSES, TOPK, columns_of
from kdcache.loader import open_store
from kdcache.pull import PullConfig, pull
from kdcache.specs import with_changes
from kdcache.store.layout import block_arrays, layout_of
from kdcache.store.reader import open_reader
from kdcache.store.transfer import push_store
from kdcache.store.verify import verify_store
from kdcache.store.writer import StoreWriter
from tests.remote_servers import BUCKET, Proxy, proxy_to, s3_environment, s3_server

URL = f"s3://{BUCKET}/bench/store"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--views", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, s3_server() as endpoint, proxy_to(endpoint) as proxy:
        os.environ.update(s3_environment(proxy.url))
        os.environ["KDCACHE_CACHE"] = f"{folder}/cache"
        store = Path(folder) / "store.zarr"
        write(store, arguments.rows, arguments.views)
        report("remote", figures_of(store, Path(folder), proxy))


def write(store: Path, rows: int, views: int) -> None:
    """A sealed store of noise of the right kind."""
    manifest = with_changes(manifest_for(rows, CLASSES, topk=TOPK, precision="default"), num_views=views)
    with StoreWriter.open(store, manifest) as writer:
        for block in writer.pending:
            writer.write_block(block, columns_of(block))
        writer.seal()


def figures_of(store: Path, folder: Path, proxy: Proxy) -> dict[str, Any]:
    """Every step with its requests and seconds."""
    manifest = open_reader(store).manifest
    total = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    chunks = manifest.blocks_per_view * len(block_arrays(layout_of(manifest), 0))

    def measured(action: Callable[[], object]) -> dict[str, Any]:
        proxy.requests.clear()
        seconds = seconds_of(action)
        return {"requests": dict(proxy.count()), "seconds": round(seconds, 2)}

    def epoch() -> None:
        opened = open_store(URL)
        order = torch.randperm(opened.num_rows, generator=torch.Generator().manual_seed(0))
        for batch in order.split(1024):
            opened.targets(batch, view=0)

    def one_view() -> None:
        os.environ["KDCACHE_CACHE"] = f"{folder}/another-machine"
        part = pull(PullConfig(source=URL, folder=str(folder / "part"), views=1))
        figures["pull_one_view_share_of_bytes"] = round(part.bytes_moved / total, 4)

    figures: dict[str, Any] = {}
    figures |= {
        "rows": manifest.dataset.num_rows,
        "views": manifest.num_views,
        "bytes": total,
        "chunks_of_view_0": chunks,
        "push": measured(lambda: push_store(str(store), URL)),
        "open": measured(lambda: open_reader(URL)),
        "epoch": measured(epoch),
        "epoch_again": measured(epoch),
        "verify": measured(lambda: verify_store(URL)),
        "pull_one_view": measured(one_view),
        "pull": measured(lambda: pull(PullConfig(source=URL, folder=str(folder / "whole")))),
    }
    figures["epoch_requests_per_chunk"] = round(sum(figures["epoch"]["requests"].values()) / chunks, 3)
    return figures


if __name__ == "__main__":
    main()
