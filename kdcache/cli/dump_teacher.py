"""`kdcache dump-teacher`: options to a `DumpConfig`, its result to text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcache.cli.options import TopK, json_option, option, subcommand
from kdcache.cli.output import facts, write_json, write_result

if TYPE_CHECKING:
    from kdcache.dump import DumpResult


@subcommand("dump-teacher")
@option("--dataset", metavar="NAME|CARD", default="digit-pairs", help="Data card, card.toml or file.py:factory.")
@option("--data-root", kind=click.Path(path_type=Path), metavar="DIR", help="Folder with the data set's files.")
@option("--split", default="train", metavar="NAME", help="Split whose rows are dumped.")
@option(
    "--teacher",
    metavar="SOURCE",
    default="",
    help="Built-in name, torchvision:NAME, timm:NAME, hf:FOLDER or file.py:factory.",
)
@option("--weights", metavar="FILE|ENUM", default="", help="safetensors or torch file, or a torchvision weight enum.")
@option("--init-seed", kind=int, metavar="SEED", help="Random weights from this seed instead of a file (for trials).")
@option("--head", metavar="NAME", default="", help="Last linear layer, when it is not found by itself.")
@option("--topk", kind=TopK(), default=10, help="Classes kept per row, or 'all'.")
@option("--views", kind=click.IntRange(min=1), default=1, metavar="V", help="Augmented views per row.")
@option("--augment", metavar="POLICY", default="none", help="Preset or TOML file of the views' augmentation.")
@option("--view-seed", kind=int, default=0, metavar="SEED", help="Seed of the views.")
@option("--precision", kind=click.Choice(["exact", "default", "compact"]), default="default", help="How finely kept.")
@option("--samples", kind=click.IntRange(min=0), default=0, metavar="N", help="Classes drawn per row, for method rskd.")
@option("--batch-size", kind=click.IntRange(min=1), default=256, metavar="ROWS", help="Rows per forward pass.")
@option(
    "--context", kind=click.IntRange(min=1), metavar="TOKENS", help="Token rows: read at least so many before each."
)
@option("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N.")
@option("--amp", kind=click.Choice(["none", "bf16"]), default="none", help="Autocast; recorded, it changes targets.")
@option("--workers", kind=click.IntRange(min=0), default=0, metavar="N", help="Processes that decode files.")
@option("--out", metavar="STORE", default="", help="Where the store goes; otherwise under kdcache-store/ here.")
@option("--allow-weak-teacher", is_flag=True, default=False, help="Keep the opinion of a teacher near chance.")
@option("--dry-run", is_flag=True, default=False, help="Show rows, bytes, key, reuse and time; write nothing.")
@json_option
def command(*, as_json: bool, dry_run: bool, **options: Any) -> None:
    """Run a teacher once over a data set and keep its opinion in a store.

    A store that already covers the request is named and nothing is run. Interrupted, the same command continues.
    """
    from kdcache.dump import DumpConfig, dump_teacher
    from kdcache.dump_estimate import estimate_dump

    config = DumpConfig(**options)
    if dry_run:
        estimate = estimate_dump(config)
        write_json(estimate) if as_json else write_result(str(estimate))
        return
    result = dump_teacher(config)
    write_json(result) if as_json else write_result(_text(result))


def _text(result: DumpResult) -> str:
    made = "reused, no teacher was run" if result.reused else f"{result.rows_written:,} rows in {result.seconds:.1f} s"
    pairs = [("store", result.store), ("made", made)]
    if "top1" in result.quality:
        pairs.append(("teacher", f"top-1 {result.quality['top1']:.1%}, NLL {result.quality['nll']:.3f} nats"))
    pairs += [
        ("key", result.store_key),
        ("digest", result.root_digest),
        ("next", f"kdcache distill --store {result.store}"),
    ]
    return facts(pairs)
