"""`kdcache dump-teacher`: options to a `DumpConfig`, its result to text."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcache.canonical import to_json
from kdcache.cli.options import TopK, json_option, option, subcommand
from kdcache.cli.output import facts, write_json, write_result

if TYPE_CHECKING:
    from kdcache.dump import DumpConfig, DumpResult


@subcommand("dump-teacher")
@option("--dataset", metavar="NAME|CARD", default="digit-pairs", help="Data card, card.toml or file.py:factory.")
@option("--data-root", kind=click.Path(path_type=Path), metavar="DIR", help="Folder with the data set's files.")
@option("--split", default="train", metavar="NAME", help="Split whose rows are dumped.")
@option(
    "--teacher",
    metavar="SOURCE",
    default="",
    help="Built-in name, torchvision:NAME, timm:NAME, hf:FOLDER or file.py:factory; otherwise the card's.",
)
@option(
    "--weights",
    metavar="FILE|ENUM",
    default="",
    help="safetensors or torch file, or a torchvision weight enum; otherwise the card's.",
)
@option("--init-seed", kind=int, metavar="SEED", help="Random weights from this seed instead of a file (for trials).")
@option("--head", metavar="NAME", default="", help="Last linear layer, when it is not found by itself.")
@option("--topk", kind=TopK(), help="Classes kept per row, or 'all'; otherwise 10, or all where there are fewer.")
@option("--views", kind=click.IntRange(min=1), default=1, metavar="V", help="Augmented views per row.")
@option("--augment", metavar="POLICY", default="none", help="Preset or TOML file of the views' augmentation.")
@option("--view-seed", kind=int, default=0, metavar="SEED", help="Seed of the views.")
@option("--precision", kind=click.Choice(["exact", "default", "compact"]), default="default", help="How finely kept.")
@option("--samples", kind=click.IntRange(min=0), default=0, metavar="N", help="Classes drawn per row, for method rskd.")
@option(
    "--features",
    metavar="NAME,...",
    default="",
    help="Also keep what passes inside the teacher: penultimate, layer1 to layer3, or a layer's name.",
)
@option("--feature-dtype", kind=click.Choice(["float16", "float32"]), default="float16", help="How features are kept.")
@option("--batch-size", kind=click.IntRange(min=1), default=256, metavar="ROWS", help="Rows per forward pass.")
@option(
    "--context", kind=click.IntRange(min=1), metavar="TOKENS", help="Token rows: read at least so many before each."
)
@option("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N.")
@option("--amp", kind=click.Choice(["none", "bf16"]), default="none", help="Autocast; recorded, it changes targets.")
@option("--workers", kind=click.IntRange(min=1), default=1, metavar="N", help="Processes that share the blocks.")
@option("--decode-workers", kind=click.IntRange(min=0), default=0, metavar="N", help="Processes that decode files.")
@option("--dask", metavar="ADDRESS", default="", help="Scheduler of a Dask cluster whose workers share the blocks.")
@option("--out", metavar="STORE", default="", help="Where the store goes; otherwise under kdcache-store/ here.")
@option("--catalog", metavar="URL", default="", help="Catalogue to look in first and to put the store into.")
@option("--wait", is_flag=True, default=False, help="Wait when someone else is dumping the same thing.")
@option("--allow-weak-teacher", is_flag=True, default=False, help="Keep the opinion of a teacher near chance.")
@option("--dry-run", is_flag=True, default=False, help="Show rows, bytes, key, reuse and time; write nothing.")
@json_option
def command(*, as_json: bool, dry_run: bool, catalog: str, wait: bool, **options: Any) -> None:
    """Run a teacher once over a data set and keep its opinion in a store.

    A store that already covers the request is named and nothing is run. Interrupted, the same command continues.
    The blocks can be shared by --workers here, by the ranks of torchrun, or by --dask; the store is the same.
    """
    from kdcache.dump import DumpConfig, dump_teacher
    from kdcache.dump_estimate import estimate_dump

    config = DumpConfig(**options)
    if dry_run:
        config, hit = _looked_up(config, catalog)
        estimate = estimate_dump(config)
        known = f"\ncatalogue {hit or 'no store that covers this request'}" if catalog else ""
        write_json({**to_json(estimate), "catalog_hit": hit}) if as_json else write_result(f"{estimate}{known}")
        return
    if catalog:
        from kdcache.sharing import dump_for_team
        from kdcache.store.catalog import Catalog

        result = dump_for_team(config, Catalog(catalog), wait=wait)
    else:
        result = dump_teacher(config)
    write_json(result) if as_json else write_result(_text(result, config))


def _looked_up(config: DumpConfig, catalog: str) -> tuple[DumpConfig, str | None]:
    """The request with the place it would write, and the store of the catalogue that covers it."""
    if not catalog:
        return config, None
    from kdcache.sharing import looked_up
    from kdcache.store.catalog import Catalog

    config, found = looked_up(Catalog(catalog), config)
    return config, None if found is None else found.store


def _text(result: DumpResult, config: DumpConfig) -> str:
    made = "reused, no teacher was run" if result.reused else f"{result.rows_written:,} rows in {result.seconds:.1f} s"
    pairs = [("store", result.store), ("made", made)]
    if "top1" in result.quality:
        pairs.append(("teacher", f"top-1 {result.quality['top1']:.1%}, NLL {result.quality['nll']:.3f} nats"))
    pairs += [
        ("key", result.store_key),
        ("digest", result.root_digest),
        ("next", _next_command(result, config)),
    ]
    return facts(pairs)


def _next_command(result: DumpResult, config: DumpConfig) -> str:
    """What trains from the store; it names again what a store does not say: a folder, code of the user's own."""
    words = ["kdcache", "distill", "--store", result.store]
    words += ["--data-root", str(config.data_root)] if config.data_root else []
    words += ["--dataset", config.dataset] if ".py:" in config.dataset else []
    words += ["--augment", config.augment] if ".py:" in config.augment else []
    return shlex.join(words)
