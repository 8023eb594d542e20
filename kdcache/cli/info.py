"""`kdcache info`: what a store is and holds. Imports no torch and reads no array."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from kdcache.cli.options import json_option, subcommand
from kdcache.cli.output import facts, human_bytes, table, write_json, write_result
from kdcache.lineage import in_words


@subcommand("info")
@click.argument("store", required=False)
@json_option
def command(*, store: str | None, as_json: bool) -> None:
    """Show what a store is and holds, without reading its arrays.

    STORE may be left out when there is exactly one under kdcache-store/ here.
    """
    from kdcache.store.find import only_store
    from kdcache.store.info import describe

    description = describe(store if store is not None else only_store().location)
    write_json(description) if as_json else write_result(_text(description))


def _text(store: Mapping[str, Any]) -> str:
    manifest = store["manifest"]
    data, teacher, codec, quality = (manifest[name] for name in ("dataset", "teacher", "codec", "quality"))
    pairs = [
        ("store", store["location"]),
        ("state", _state(store)),
        ("data", f"{data['name']} ({data['split']}), {data['num_rows']:,} rows, {data['num_classes']} classes"),
        ("teacher", f"{teacher['source']}, weights {teacher['weights'] or 'none'}, {teacher['numeric_mode']}"),
        ("lineage", in_words(teacher)),
        ("quality", f"top-1 {quality['top1']:.1%}, NLL {quality['nll']:.3f} nats" if "top1" in quality else ""),
        ("views", f"{store['views']} ({manifest['views']['policy']})"),
        ("kept", f"top {codec['topk']}, precision {codec['precision']}, {', '.join(codec['fields']) or 'no extras'}"),
        ("size", _size(store)),
        ("key", store["store_key"]),
        ("digest", store["root_digest"]),
    ]
    arrays = [
        [
            name,
            " x ".join(map(str, array["shape"])),
            array["dtype"],
            "?" if array["bytes_on_disk"] is None else human_bytes(array["bytes_on_disk"]),
        ]
        for name, array in store["arrays"].items()
    ]
    listing = table(arrays, header=["array", "shape", "dtype", "on disk"], right=[3])
    return facts([pair for pair in pairs if pair[1]]) + "\n\n" + listing


def _state(store: Mapping[str, Any]) -> str:
    if store["complete"]:
        return "complete"
    progress = store["progress"]
    writer = f", being written by {progress['writer']}" if progress["writer"] else ", no one is writing it"
    whole = f" ({progress['views']} of {store['views']} views whole)" if store["views"] > 1 else ""
    return f"not finished: {progress['committed']} of {progress['total']} blocks{whole}{writer}"


def _size(store: Mapping[str, Any]) -> str:
    full = store["full_logits_bytes"]
    if store["bytes_on_disk"] is None:
        return f"unknown: a web server does not list files; all logits in float32 would take {human_bytes(full)}"
    size = f"{human_bytes(store['bytes_on_disk'])}, {store['bytes_per_row']:.1f} bytes per row and view"
    return f"{size}; all logits in float32 would take {human_bytes(full)}"


def _bytes(count: int | None) -> str:
    return "?" if count is None else human_bytes(count)
