"""What very large stores would cost: the tables of docs/scale.md.

They are arithmetic (`kdcache.cost_model`, `kdcache.cost_of_use`): nothing is measured here (`scale_check` does that).
What a teacher does a second and what things cost are inputs of this file, not facts. `--write` puts the tables into
docs/scale.md; a test holds that they are there as this command makes them.

    python -m benchmarks.scale [--prices FILE.json] [--write]
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.cost_model import StoreSize, expected_rates, planned_manifest, store_size
from kdcache.cost_of_use import LIST_PAGE, Prices, dump_time, money, pull_requests, push_requests
from kdcache.specs import StoreManifest

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prices", type=Path, help="JSON object with the fields of kdcache.cost_of_use.Prices")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    asked = parser.parse_args()
    prices = EXAMPLE_PRICES if asked.prices is None else Prices(**json.loads(asked.prices.read_text()))
    if asked.write:
        DOCUMENT.write_text(document(DOCUMENT.read_text(), prices))
    print(json.dumps({"bench": "scale", "figures": [figures_of(plan, prices) for plan in plans()]}, indent=1))


if __name__ == "__main__":
    main()
