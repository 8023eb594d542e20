"""What very large stores would cost, and how far the cost model is off for small ones that are really made: id `scale`.

The tables are arithmetic (`kdcache.cost_model`, `kdcache.cost_of_use`): nothing is measured. What a teacher does a
second and what things cost are inputs of this file, not facts. `--check` makes small stores with `dump-teacher`, sends
them to an S3 API on this machine (moto) and compares: bytes, files, requests, seconds. `--write` puts the tables into
docs/scale.md; a test holds that they are there as this command makes them.

    python -m benchmarks.scale [--prices FILE.json] [--write] [--check]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import ROOT, report
from kdcache.cost_model import StoreSize, expected_rates, planned_manifest, store_size
from kdcache.cost_of_use import LIST_PAGE, Prices, dump_time, money, pull_requests, push_requests
from kdcache.dump import dump_teacher
from kdcache.dump_estimate import estimate_dump
from kdcache.dump_plan import DumpConfig
from kdcache.progress import set_quiet
from kdcache.specs import StoreManifest
from kdcache.store.reader import read_manifest
from kdcache.store.transfer import push_store
from tests.remote_servers import BUCKET, proxy_to, s3_environment, s3_server

DOCUMENT = ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- tables: python -m benchmarks.scale --write -->", "<!-- end of tables -->"
WORD_SHARE = 0.87  # of log2 K that a token's number takes in the top 64 of the PTB model

# An example to calculate with. Nobody looked these up: put your own into a JSON file and give it with --prices.
EXAMPLE_PRICES = Prices(
    as_of="an example of 2026-11-21; not looked up", device_hour=2.0, gb_month=0.023, put_thousand=0.005,
    get_thousand=0.0004, egress_gb=0.09,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One line of the tables; rows_per_second of one worker is an assumption, too."""

    name: str
    manifest: StoreManifest
    workers: int
    rows_per_second: float
    index_bits: float | None = None
    copies: int = 1  # stores of this kind that are one corpus together

    @property
    def size(self) -> StoreSize:
        return store_size(self.manifest, expected_rates(self.manifest, index_bits=self.index_bits))


def plans() -> list[Plan]:
    """Image sets with many views, and tokens."""
    imagenet = {"rows": 1_281_167, "classes": 1000, "views": 300, "view_params": 9, "weight_columns": 2048}
    large = {"rows": 14_197_122, "classes": 21_841, "views": 90, "view_params": 15}
    words = WORD_SHARE * math.log2(151_936)

    def tokens(rows: int, topk: int = 64) -> StoreManifest:
        return planned_manifest(rows=rows, classes=151_936, topk=topk)

    return [
        Plan(name="ImageNet-1k x 300, k=10", manifest=planned_manifest(**imagenet, topk=10), workers=8,
             rows_per_second=2500),
        Plan(name="ImageNet-1k x 300, k=100", manifest=planned_manifest(**imagenet, topk=100), workers=8,
             rows_per_second=2500),
        Plan(name="ImageNet-21k x 90, k=10", manifest=planned_manifest(**large, topk=10), workers=8,
             rows_per_second=1000),
        Plan(name="ImageNet-21k x 90, k=100", manifest=planned_manifest(**large, topk=100), workers=8,
             rows_per_second=1000),
        Plan(name="10^9 tokens, k=64", manifest=tokens(10**9), workers=8, rows_per_second=10_000, index_bits=words),
        Plan(name="10^12 tokens, k=64, one store", manifest=tokens(10**12), workers=512, rows_per_second=10_000,
             index_bits=words),
        Plan(name="10^12 tokens, k=64, 1,000 stores", manifest=tokens(10**9), workers=512, rows_per_second=10_000,
             index_bits=words, copies=1000),
    ]  # fmt: skip


def figures_of(plan: Plan, prices: Prices) -> dict[str, Any]:
    """One plan in numbers; bytes, requests, seconds and money are of all its copies."""
    manifest, size, copies = plan.manifest, plan.size, plan.copies
    cells = manifest.dataset.num_rows * manifest.num_views * copies
    workers = max(1, plan.workers // copies)  # of one store; the stores are made side by side
    taken = dump_time(manifest, rows_per_second=plan.rows_per_second, workers=workers, overlapped=True)
    side_by_side = max(1, plan.workers // workers)
    rounds = -(-copies // side_by_side)
    cost = money(manifest, size, taken, prices, workers=workers)
    blocks = manifest.num_views * manifest.blocks_per_view
    return {
        "name": plan.name,
        "bytes": size.bytes * copies,
        "bytes_per_row": size.bytes * copies / cells,
        "objects": size.objects * copies,
        "blocks_of_a_store": blocks,
        "ledger_bytes": size.array_bytes["commit"],
        "record_files": blocks,
        "largest_chunk": size.largest_chunk,
        "root_json_kb": size.metadata_bytes / 1000,
        "view_bytes": size.resident_bytes,
        "push_requests": push_requests(manifest, size).total * copies,
        "pull_requests": pull_requests(manifest, size).total * copies,
        "list_pages": -(-size.objects // LIST_PAGE),
        "workers": plan.workers,
        "rows_per_second": plan.rows_per_second,
        "days": taken.total * rounds / 86_400,
        "forward_days": taken.forward * rounds / 86_400,
        "write_core_hours": taken.write * workers * copies / 3600,
        "seal_hours": taken.seal / 3600,
        "money_dump": cost.dump * copies,
        "money_push": cost.push * copies,
        "money_month": cost.month * copies,
        "money_reading": cost.reading * copies,
    }


def tables(prices: Prices) -> str:
    """The tables of docs/scale.md in Markdown."""
    found = [figures_of(plan, prices) for plan in plans()]
    first = _table(
        ("what", "bytes", "a row and view", "objects", "push / pull requests", "largest chunk", "a view in memory"),
        [
            (f["name"], _bytes(f["bytes"]), f"{f['bytes_per_row']:.1f}", f"{f['objects']:,}",
             f"{f['push_requests']:,} / {f['pull_requests']:,}", _bytes(f["largest_chunk"]), _bytes(f["view_bytes"]))
            for f in found
        ],
    )  # fmt: skip
    second = _table(
        ("what", "blocks of a store", "ledger", "commit records while it is written", "pages of a listing"),
        [
            (f["name"], f"{f['blocks_of_a_store']:,}", _bytes(f["ledger_bytes"]), f"{f['record_files']:,} files",
             f"{f['list_pages']:,}")
            for f in found
        ],
    )  # fmt: skip
    third = _table(
        ("what", "workers x rows/s", "days", "of these forward", "core hours of writing", "hours of sealing (one core)",
         "dump", "push", "a month", "one reading"),
        [
            (f["name"], f"{f['workers']} x {f['rows_per_second']:,.0f}", f"{f['days']:.1f}", f"{f['forward_days']:.1f}",
             f"{f['write_core_hours']:,.1f}", f"{f['seal_hours']:.1f}", *(f"{f[f'money_{name}']:,.2f}" for name in
             ("dump", "push", "month", "reading")))
            for f in found
        ],
    )  # fmt: skip
    note = (
        f"Prices ({prices.as_of}): {prices.device_hour} a worker hour, {prices.gb_month} a GB and month, "
        f"{prices.put_thousand} a thousand writes or listings, {prices.get_thousand} a thousand reads, "
        f"{prices.egress_gb} a GB that leaves. Workers and their rows/s are assumptions as well."
    )
    return "\n\n".join((first, second, third, note))


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:,.0f} bytes"


def document(text: str, prices: Prices) -> str:
    """The page with its tables made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables(prices)}\n\n{END}{after}"


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
        (folder / "crop.toml").write_text(POLICY)
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
            sent = Counter(request.method for request in proxy.requests)
            found.append(
                {
                    "what": title,
                    "bytes": sum(sizes),
                    "dry_run_over_bytes": round(estimate.bytes / sum(sizes), 3),
                    "expected_over_bytes": round(expected.bytes / sum(sizes), 3),
                    "files": len(sizes),
                    "dry_run_files": estimate.files,
                    "push_requests": sum(sent.values()),
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
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prices", type=Path, help="JSON object with the fields of kdcache.cost_of_use.Prices")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    parser.add_argument("--check", action="store_true", help="make small stores and compare")
    asked = parser.parse_args()
    set_quiet(True)
    prices = EXAMPLE_PRICES if asked.prices is None else Prices(**json.loads(asked.prices.read_text()))
    if asked.write:
        DOCUMENT.write_text(document(DOCUMENT.read_text(), prices))
    figures: dict[str, Any] = {"plans": [figures_of(plan, prices) for plan in plans()]}
    if asked.check:
        figures["check"] = checked()
    report("scale", figures)


if __name__ == "__main__":
    main()
