"""The options that `distill` and `train-teacher` share: those of `kdcache.training.config.TrainingOptions`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from kdcache.cli.options import option

F = TypeVar("F", bound=Callable[..., Any])

_COUNT = click.IntRange(min=1)
_FROM_0 = click.IntRange(min=0)
_SHARED = (
    option("--data-root", kind=click.Path(path_type=Path), metavar="DIR", help="Folder with the data set's files."),
    option("--epochs", kind=_COUNT, metavar="N", help="Passes over the data; otherwise the card's."),
    option("--batch-size", kind=_COUNT, metavar="ROWS", help="Rows per step; otherwise the card's."),
    option("--lr", kind=float, metavar="RATE", help="Peak learning rate; otherwise the card's."),
    option("--optimizer", metavar="NAME", help="sgd or adamw; otherwise the card's."),
    option("--schedule", metavar="NAME", help="cosine, step or constant; otherwise the card's."),
    option("--momentum", kind=float, metavar="M", help="Momentum of sgd."),
    option("--weight-decay", kind=float, metavar="W", help="On weights, not on biases or normalisation."),
    option("--warmup-epochs", kind=float, metavar="N", help="Epochs of linear rise to the peak rate."),
    option("--clip-grad", kind=float, metavar="NORM", help="Largest global gradient norm; 0 is off."),
    option("--accumulate", kind=_COUNT, metavar="PIECES", help="Pieces a batch is cut into, to save memory."),
    option("--ema", kind=float, metavar="DECAY", help="Average of the weights that is evaluated and saved; 0 is off."),
    option("--amp", metavar="MODE", help="Arithmetic of the forward pass: none (float32), bf16 or fp16 autocast."),
    option("--channels-last/--no-channels-last", help="Memory layout of images and convolutions."),
    option("--compile/--no-compile", help="Use torch.compile."),
    option("--eval-every", kind=_COUNT, metavar="EPOCHS", help="Epochs between evaluations."),
    option(
        "--early-stop", kind=_FROM_0, metavar="EPOCHS", help="End after so many epochs without a better one; 0 is off."
    ),
    option(
        "--keep-every",
        kind=_FROM_0,
        default=0,
        metavar="EPOCHS",
        help="Keep the weights of each n-th epoch; 0 is off.",
    ),
    option(
        "--segment", kind=_COUNT, metavar="TOKENS", help="Token rows: length of a lane's step; otherwise the card's."
    ),
    option(
        "--context", kind=_COUNT, metavar="TOKENS", help="Token rows: read at least so many before each in figures."
    ),
    option("--augment", metavar="POLICY", help="Random augmentation of training inputs; none is off."),
    option("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N."),
    option("--workers", kind=_FROM_0, default=0, metavar="N", help="Processes that decode files."),
    option("--out", metavar="DIR", default="", help="Run folder; otherwise under kdcache-runs/ here."),
    option("--resume", is_flag=True, default=False, help="Continue where the last checkpoint stands."),
)


def training_options(function: F) -> F:
    """Decorator: every shared option, in the order above."""
    for add in reversed(_SHARED):
        function = add(function)
    return function
