"""`kdcache train-teacher`: options to a `TeacherConfig`, its result to text."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcache.cli.options import json_option, named_values, option, subcommand
from kdcache.cli.output import facts, write_json, write_result
from kdcache.cli.training_options import training_options

if TYPE_CHECKING:
    from kdcache.teacher_training import TeacherResult


@subcommand("train-teacher")
@option("--dataset", metavar="NAME|CARD", default="digit-pairs", help="Data card, card.toml or file.py:factory.")
@option(
    "--model",
    metavar="MODEL",
    default="",
    help="Built-in name, torchvision:NAME, timm:NAME or file.py:factory; otherwise the card's.",
)
@option("--method", kind=click.Choice(["ce", "ls"]), default="ce", help="Cross-entropy or label smoothing.")
@option("--set", "settings", metavar="OPTION=VALUE", multiple=True, help="An option of the method; may be repeated.")
@option("--split", metavar="NAME", default="", help="Rows to train on; otherwise the card's.")
@option("--eval-split", metavar="NAME", default="", help="Rows to evaluate on; otherwise the card's.")
@option("--seed", kind=click.IntRange(min=0), default=0, metavar="SEED", help="Initial weights, order, augmentation.")
@training_options
@json_option
def command(*, as_json: bool, settings: tuple[str, ...], **options: Any) -> None:
    """Train a teacher when there are no weights to start from.

    The run folder's last.safetensors is a --weights for dump-teacher.
    """
    from kdcache.teacher_training import TeacherConfig, train_teacher

    result = train_teacher(TeacherConfig(options=named_values(settings), **options))
    write_json(result.to_json()) if as_json else write_result(_text(result, options["data_root"]))


def _text(result: TeacherResult, data_root: Path | None) -> str:
    figures = result.figures
    return facts(
        [
            ("teacher", figures["model"]),
            ("accuracy", f"{figures['accuracy']:.2%} of {figures['test_rows']:,} rows ({figures['eval_split']})"),
            *([("perplexity", f"{figures['perplexity']:.2f}")] if figures.get("perplexity") is not None else []),
            ("NLL", f"{figures['nll']:.3f} nats"),
            ("time", "finished before, nothing was trained" if result.reused else f"{figures['seconds']:.1f} s"),
            ("weights", str(result.weights)),
            ("next", _next_command(result, data_root)),
        ]
    )


def _next_command(result: TeacherResult, data_root: Path | None) -> str:
    figures = result.figures
    root = ["--data-root", str(data_root)] if data_root else []
    words = ["--dataset", figures["dataset"], *root, "--teacher", figures["model"], "--weights", str(result.weights)]
    return shlex.join(["kdcache", "dump-teacher", *words])
