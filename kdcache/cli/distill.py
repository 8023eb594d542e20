"""`kdcache distill`: options to a `DistillConfig`, methods and seeds to a grid, results to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from kdcache.cli.options import CommaList, json_option, named_values, option, subcommand
from kdcache.cli.output import facts, write_json, write_result
from kdcache.cli.training_options import training_options

if TYPE_CHECKING:
    from kdcache.distill import RunResult


@subcommand("distill")
@option(
    "--store", metavar="STORE", default="", help="Store to learn from; otherwise the one under kdcache-store/ here."
)
@option(
    "--student",
    metavar="MODEL",
    default="",
    help="Built-in name, torchvision:NAME, timm:NAME or file.py:factory; otherwise the card's.",
)
@option("--method", kind=CommaList(str), default="kd-topk", help="One or several: ce,kd (kdcache methods lists them).")
@option("--topk", kind=click.IntRange(min=1), metavar="K", help="Classes used per row; otherwise the method's own.")
@option("--temperature", kind=float, metavar="T", help="Softmax temperature, no unit; otherwise the method's own.")
@option("--alpha", kind=float, metavar="A", help="Weight of the soft part, 0 to 1; otherwise the method's own.")
@option("--set", "settings", metavar="OPTION=VALUE", multiple=True, help="An option of the method; may be repeated.")
@option("--dataset", metavar="NAME|CARD", default="", help="Data card; otherwise the one the store names.")
@option("--eval-split", metavar="NAME", default="", help="Rows to evaluate on; otherwise the card's.")
@option(
    "--eval-store", metavar="STORE", default="", help="Store over those rows, to measure agreement with the teacher."
)
@option("--views", kind=click.IntRange(min=1), metavar="V", help="Train on the first V stored views; otherwise all.")
@option(
    "--view-order",
    kind=click.Choice(["cycle", "random"]),
    default="cycle",
    help="Which view an epoch shows: epoch mod V, or a fresh order of all V every V epochs.",
)
@option(
    "--allow-view-drift",
    is_flag=True,
    default=False,
    help="Train even if the store's views come out with other pixels here.",
)
@option("--follow", is_flag=True, default=False, help="Train while the store is dumped: each epoch waits for its view.")
@option(
    "--follow-timeout",
    kind=click.FloatRange(min=0),
    default=600.0,
    metavar="SECONDS",
    help="With --follow: how long to wait while nobody writes the store.",
)
@option("--seed", kind=CommaList(int), default="0", help="One or several: 0,1,2. Weights, order, augmentation.")
@training_options
@json_option
def command(
    *, as_json: bool, method: tuple[str, ...], seed: tuple[int, ...], settings: tuple[str, ...], **options: Any
) -> None:
    """Train students from a store; the teacher is not needed.

    Several methods or seeds train one student each, one after another, and end in a table; --temperature, --alpha and
    --set then go to those methods that have them.
    """
    from kdcache.distill import DistillConfig
    from kdcache.distill.grid import distill_grid
    from kdcache.report import compare_runs, text_table

    config = DistillConfig(options=named_values(settings), **options)
    results = distill_grid(config, methods=method, seeds=seed)
    if len(results) == 1:
        write_json(results[0].to_json()) if as_json else write_result(_text(results[0]))
        return
    rows = compare_runs([result.folder for result in results])
    if as_json:
        write_json({"runs": [result.to_json() for result in results], "table": rows})
    else:
        write_result(text_table(rows) + "\n\n" + _where(results))


def _text(result: RunResult) -> str:
    figures = result.figures
    asked = [f"k {figures['topk']}"] if figures.get("topk") is not None else []
    asked += [f"T {figures['temperature']:g}"] if figures.get("temperature") is not None else []
    asked += [f"alpha {figures['alpha']:g}"] if figures.get("alpha") is not None else []
    return facts(
        [
            ("student", figures["student"]),
            ("method", ", ".join([figures["method"], *asked])),
            ("accuracy", f"{figures['accuracy']:.2%} of {figures['test_rows']:,} rows ({figures['eval_split']})"),
            *_perplexity(figures),
            ("NLL", f"{figures['nll']:.3f} nats, ECE {figures['ece']:.3f}"),
            *_agreement(figures),
            ("time", "finished before, nothing was trained" if result.reused else f"{figures['seconds']:.1f} s"),
            ("run", str(result.folder)),
            ("next", f"kdcache report {result.folder}"),
        ]
    )


def _perplexity(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [("perplexity", f"{figures['perplexity']:.2f}")] if figures.get("perplexity") is not None else []


def _agreement(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    measured = figures.get("agreement")
    return [] if measured is None else [("agreement", f"{measured:.2%} with the teacher ({figures['agreement_on']})")]


def _where(results: Sequence[RunResult]) -> str:
    folders = sorted({str(result.folder.parent) for result in results})
    reused = sum(result.reused for result in results)
    before = f", {reused} of them finished before" if reused else ""
    return facts(
        [("runs", f"{len(results)} under {', '.join(folders)}{before}"), ("next", f"kdcache report {folders[0]}")]
    )
