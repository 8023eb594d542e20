"""What a store is, in one dictionary, without decoding or importing anything heavy (for `kdcache info`)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from kdcache.store.files import WORK_FOLDER, tree_bytes, walk_files
from kdcache.store.layout import layout_of, row_bytes
from kdcache.store.lease import holder_of
from kdcache.store.ledger import committed_places
from kdcache.store.manifest_file import group_folders, read_manifest
from kdcache.store.roots import root_of


def describe(location: str | Path, *, copy: Path | None = None) -> dict[str, Any]:
    """Facts about a store: manifest, arrays, bytes on disk, progress; plain JSON values.

    Args:
        location: local folder or URL.
        copy: a local folder with the store's chunks, to take sizes from (`StoreReader.folder`).

    Returns:
        "location", "complete", "store_key", "root_digest", "manifest" (JSON), "rows", "views", "arrays" (name -> shape,
        dtype, bytes_on_disk), "bytes_on_disk", "bytes_per_row" (per row and view, store-level arrays left out),
        "bytes_per_row_uncompressed", "full_logits_bytes" (float32, all K, all views), and "progress" for an unfinished
        store: blocks "committed" and "total", whole "views", "writer" (who writes it now, or None). Bytes on disk are
        None where nothing can be listed: on a web server.

    Raises:
        NotFoundError, IncompatibleError, CorruptStoreError: as `read_manifest`.
    """
    root = root_of(location)
    manifest = read_manifest(root)
    layout = layout_of(manifest)
    place = copy if copy is not None else root
    listed = isinstance(place, Path) or not place.read_only
    on_disk = tree_bytes(place, groups=group_folders(layout))
    cells = manifest.dataset.num_rows * manifest.num_views
    per_row = [array.name for array in layout.values() if array.kind in ("view_rows", "rows")]
    facts: dict[str, Any] = {
        "location": str(root),
        "complete": manifest.complete,
        "store_key": manifest.store_key,
        "root_digest": manifest.root_digest,
        "rows": manifest.dataset.num_rows,
        "views": manifest.num_views,
        "arrays": {
            array.name: {
                "shape": list(array.shape),
                "dtype": array.dtype.name,
                "bytes_on_disk": on_disk.get(array.name, 0) if listed else None,
            }
            for array in layout.values()
        },
        "bytes_on_disk": sum(on_disk.values()) if listed else None,
        "bytes_per_row": round(sum(on_disk.get(name, 0) for name in per_row) / cells, 3) if listed else None,
        "bytes_per_row_uncompressed": row_bytes(layout),
        "full_logits_bytes": 4 * cells * manifest.dataset.num_classes,
        "manifest": manifest.to_json(),
    }
    if not manifest.complete:
        holder = holder_of(root) if isinstance(root, Path) and (root / WORK_FOLDER).is_dir() else None
        places = committed_places(root, manifest, layout["commit"])
        blocks = Counter(view for view, _ in places)
        facts["progress"] = {
            "committed": len(places),
            "total": manifest.num_views * manifest.blocks_per_view,
            "views": sum(count == manifest.blocks_per_view for count in blocks.values()),
            "writer": None if holder is None else str(holder),
        }
    return facts


def bytes_by_view(location: str | Path, *, copy: Path | None = None) -> dict[str, list[int]]:
    """Bytes on disk of every array that has a view axis: name -> V numbers; `copy` as for `describe`.

    Raises:
        NotFoundError, IncompatibleError, CorruptStoreError: as `read_manifest`.
    """
    root = root_of(location)
    manifest = read_manifest(root)
    names = [array.name for array in layout_of(manifest).values() if array.kind == "view_rows"]
    sizes = {name: [0] * manifest.num_views for name in names}
    for name in names:
        for relative, size in walk_files(copy if copy is not None else root, under=name):
            parts = relative[len(name) + 1 :].split("/")  # c/VIEW/BLOCK/...
            if len(parts) > 1 and parts[1].isdecimal() and int(parts[1]) < manifest.num_views:
                sizes[name][int(parts[1])] += size
    return sizes
