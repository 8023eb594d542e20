"""A second reader of format 1, written from docs/store-format.md alone: zarr and numpy, nothing of kdcache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import zarr

VIEW_ARRAYS = ["label_log_prob", "tail", "topk_index", "topk_log_prob"]
ROW_ARRAYS = ["label", "row_digest"]
OPTIONAL_VIEW = {"partner_label_log_prob", "sample_count", "sample_index", "view_params"}
STATIC = {"class_bias", "class_mean", "class_similarity", "class_weight", "sequence_offsets"}


def read_store(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """The manifest and every array of a sealed store, after checking the root digest and all block digests."""
    manifest = json.loads((folder / "zarr.json").read_text())["attributes"]["kdcache"]
    assert manifest["format_version"] == 1
    assert manifest["complete"]
    fields = manifest["codec"]["fields"]
    view_names = VIEW_ARRAYS + [
        name for name in fields if name in OPTIONAL_VIEW or name.startswith(("features/", "features32/"))
    ]
    row_names = ROW_ARRAYS + [name for name in fields if name == "mask"]
    static_names = [name for name in fields if name in STATIC]
    group = zarr.open_group(str(folder), mode="r")
    arrays = {name: np.asarray(group[name][...]) for name in [*view_names, *row_names, *static_names]}
    commit = np.asarray(group["commit"][...])
    assert root_digest(manifest, commit) == manifest["root_digest"]
    static = {name: arrays[name] for name in static_names}
    assert digest(f"kdcache static {manifest['store_id']}\n", static) == commit[0].tobytes().hex()
    rows, block_rows = manifest["dataset"]["num_rows"], manifest["block_rows"]
    per_view = -(-rows // block_rows)
    for view in range(manifest["num_views"]):
        for block in range(per_view):
            here = slice(block * block_rows, min((block + 1) * block_rows, rows))
            columns = {name: arrays[name][view, here] for name in view_names}
            if view == 0:
                columns |= {name: arrays[name][here] for name in row_names}
            head = f"kdcache block {manifest['store_id']} {view} {block}\n"
            assert digest(head, columns) == commit[1 + view * per_view + block].tobytes().hex()
    return manifest, arrays


def digest(head: str, columns: dict[str, np.ndarray[Any, Any]]) -> str:
    """Sha256 of a head line and, by name, each array's line and bytes."""
    hasher = hashlib.sha256(head.encode())
    for name in sorted(columns):
        values = np.ascontiguousarray(columns[name])
        hasher.update(f"{name} {values.dtype.name} {','.join(map(str, values.shape))}\n".encode())
        hasher.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return hasher.hexdigest()


def root_digest(manifest: dict[str, Any], commit: np.ndarray[Any, Any]) -> str:
    """Sha256 of the manifest's canonical JSON, a line feed, and the ledger."""
    kept = {key: value for key, value in manifest.items() if key not in ("creator", "root_digest", "store_key")}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode() + b"\n" + commit.tobytes()).hexdigest()
