"""How far the cost model is off for small stores that are really made: bench id `scale-check`.

Each store is estimated (`--dry-run`, and from k, K and precision alone), dumped, and pushed to an S3 API on this
machine (moto, behind a proxy that counts): bytes, files, requests, seconds. Two workers' seconds are in `dump_whole`.

    python -m benchmarks.scale_check
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import report
from kdcache.cost_model import planned_manifest, store_size
from kdcache.dump import dump_teacher
from kdcache.dump_estimate import estimate_dump
from kdcache.dump_plan import DumpConfig
from kdcache.progress import set_quiet
from kdcache.specs import StoreManifest
from kdcache.store.reader import read_manifest
from kdcache.store.transfer import push_store
from tests.remote_servers import BUCKET, proxy_to, s3_environment, s3_server

CHECKS: dict[str, dict[str, Any]] = {
    "sample, trained teacher": {"dataset": "digit-pairs"},
    "sample, k=all, exact": {"dataset": "digit-pairs", "topk": "all", "precision": "exact"},
    "sample, 4 views, compact": {
        "dataset": "digit-pairs",
        "views": 4,
        "augment": "digits.toml",
        "precision": "compact",
    },
    "sample, features": {"dataset": "digit-pairs", "features": "penultimate"},
    "K=1000, 20,000 rows": {"dataset": "npz", "teacher": "mlp-64", "init_seed": 0, "topk": 100},
}
POLICY = '[[ops]]\nop = "pad-crop"\npadding = 1\n'


def checked() -> list[dict[str, Any]]:
    """Estimate, dump, push; estimate over measurement."""
    found = []
    with tempfile.TemporaryDirectory(prefix="kdcache-bench-") as name, s3_server() as url, proxy_to(url) as proxy:
        folder = Path(name)
        os.environ.update({**s3_environment(proxy.url), "KDCACHE_CACHE": f"{folder}/cache"})
        (folder / "digits.toml").write_text(POLICY)
        rng = np.random.default_rng(0)
        np.savez(
            folder / "noise.npz", train_images=rng.integers(0, 256, (20_000, 16, 16, 3), dtype=np.uint8),
            train_labels=rng.integers(1000, size=20_000), names=np.array([str(number) for number in range(1000)]),
        )  # fmt: skip
        for number, (title, settings) in enumerate(CHECKS.items()):
            store = folder / f"{number}.zarr"
            asked = {**settings, "out": str(store), "allow_weak_teacher": True}
            if "augment" in asked:
                asked["augment"] = str(folder / asked["augment"])
            if asked["dataset"] == "npz":
                asked["data_root"] = folder / "noise.npz"
            config = DumpConfig(**asked)
            estimate = estimate_dump(config)
            began = time.perf_counter()
            dump_teacher(config)
            seconds = time.perf_counter() - began
            sizes = [path.stat().st_size for path in store.rglob("*") if path.is_file()]
            manifest = read_manifest(store)
            expected = store_size(planned_like(manifest))
            proxy.requests.clear()
            push_store(str(store), f"s3://{BUCKET}/check/{number}")
            found.append(
                {
                    "what": title,
                    "bytes": sum(sizes),
                    "dry_run_over_bytes": round(estimate.bytes / sum(sizes), 3),
                    "expected_over_bytes": round(expected.bytes / sum(sizes), 3),
                    "files": len(sizes),
                    "dry_run_files": estimate.files,
                    "push_requests": len(proxy.requests),
                    "dry_run_requests": estimate.requests,
                    "seconds": round(seconds, 2),
                    "dry_run_seconds": round(estimate.seconds, 2),
                }
            )
    return found


def planned_like(manifest: StoreManifest) -> StoreManifest:
    """The plan somebody would have made of such a store before it was there."""
    shapes, codec = manifest.static_shapes, manifest.codec
    return planned_manifest(
        rows=manifest.dataset.num_rows, classes=manifest.dataset.num_classes, topk=codec.topk,
        views=manifest.num_views, precision=codec.precision, block_rows=manifest.block_rows,
        view_params=int(shapes["view_params"][0]) if "view_params" in shapes else 0,
        features={name: tuple(shapes[name]) for name in codec.fields if name.startswith("features")},
        weight_columns=int(shapes["class_weight"][1]) if "class_weight" in shapes else 0,
    )  # fmt: skip


def main() -> None:
    """Make every store and print one JSON document."""
    set_quiet(True)
    report("scale-check", checked())


if __name__ == "__main__":
    main()
