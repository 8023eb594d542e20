"""What both training commands do before the first step: model, inputs, augmentation, evaluation, device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdcache.datasets.cards import Card, load_card
from kdcache.datasets.row_range import parse_split
from kdcache.datasets.sequences import is_sequence
from kdcache.datasets.source import DataSource
from kdcache.errors import ConfigError, IncompatibleError
from kdcache.loader.inputs import InputReader, example_shape
from kdcache.loader.target_store import TargetStore
from kdcache.loader.tokens import DEFAULT_CONTEXT, TokenReader
from kdcache.metrics import Evaluation, evaluate
from kdcache.models.language import Segment
from kdcache.models.preprocess import Preprocessing
from kdcache.models.registry import BuiltModel, build_model
from kdcache.seeding import stream_key, torch_seed_for
from kdcache.training.processes import Processes
from kdcache.training.token_rows import token_evaluation_on
from kdcache.user_code import is_user_factory
from kdcache.views.policy import ViewPolicy

EVALUATION_ROWS = 512  # per forward pass; no gradients, so larger than a training batch


def card_of(dataset: str) -> Card | None:
    """The data card behind a data set's name, or None for a user's `file.py:factory`."""
    return None if is_user_factory(dataset) else load_card(dataset)


def build_for_training(
    name: str, source: DataSource, card: Card | None, *, seed: int, device: torch.device
) -> BuiltModel:
    """A model with random initial weights that depend on the seed alone, on its device.

    Raises:
        ConfigError, NotFoundError: unknown model, or one that cannot take this data.
        IncompatibleError: its logits are not (B, K) for the data's K.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed_for("initial-weights", seed))
        built = build_model(
            name,
            num_classes=source.num_classes,
            input_shape=example_shape(source),
            data=card.preprocessing if card is not None else None,
        )
    built.module.to(device)
    _check_logits(name, built, source, device)
    return built


def random_augmentation(name: str | None, *, seed: int) -> ViewPolicy | None:
    """The policy that augments training inputs afresh in every epoch, or None for "none".

    Raises:
        ConfigError: an unknown policy, or one that mixes examples (their labels would no longer be one class).
    """
    if name is None or name in ("", "none"):
        return None
    draw = stream_key("training-augmentation", seed) % 2**31
    policy = ViewPolicy.named(name, seed=draw)
    if policy.mix_op is not None:
        raise ConfigError(
            f"augment {name!r} mixes two examples, which needs targets of the mixed view",
            hint="dump a store with --augment, or choose a policy without mixing, such as cifar",
        )
    return policy


def evaluation_on(
    source: DataSource,
    preprocessing: Preprocessing,
    processes: Processes,
    *,
    workers: int = 0,
    teacher: TargetStore | None = None,
    context: int = DEFAULT_CONTEXT,
) -> Callable[[nn.Module], Evaluation]:
    """A function that evaluates a model on all rows of a data set, shared among processes, each row counted once.

    Args:
        source: the test rows.
        preprocessing: the model's.
        processes: this process among all.
        workers: processes that decode files.
        teacher: a store over the same rows; its most probable class gives the agreement.
        context: of token rows: tokens read before each, at least.
    """
    if is_sequence(source):
        return token_evaluation_on(source, processes, context=context, teacher=teacher)
    reader = InputReader(source, preprocessing, workers=workers, device=processes.device)
    labels = torch.tensor(source.labels).to(processes.device)
    share = np.arange(processes.rank, len(source), processes.world_size, dtype=np.int64)
    batches = [share[start : start + EVALUATION_ROWS] for start in range(0, len(share), EVALUATION_ROWS)]

    def rows_of(reader: InputReader) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        for inputs, rows in reader.batches(batches):
            index = torch.from_numpy(rows).to(processes.device)
            opinion = teacher.targets(index).index[:, 0] if teacher is not None else None
            yield inputs, labels[index], opinion

    return lambda module: evaluate(module, rows_of(reader), device=processes.device, sum_over_processes=processes.sum)


def evaluation_split(card: Card | None, training_split: str) -> str:
    """The split to evaluate on: the card's `eval_split`, else "test", else "val".

    Raises:
        ConfigError: it would be the training split itself.
    """
    named = card.defaults.get("eval_split") if card is not None else None
    known = tuple(card.splits) if card is not None else ("test",)
    split = named or next((name for name in ("test", "val") if name in known), "")
    if not split or split == parse_split(training_split)[0]:
        raise ConfigError(
            f"no split to evaluate on besides {training_split!r}; the card has {', '.join(known)}",
            hint="name one with --eval-split",
        )
    return str(split)


def default_run_name(*parts: str) -> str:
    """A folder name from a run's parts, with odd characters replaced."""
    return "_".join("".join(c if c.isalnum() or c in ".-+" else "-" for c in Path(part).name) for part in parts if part)


def _check_logits(name: str, built: BuiltModel, source: DataSource, device: torch.device) -> None:
    rows = np.arange(min(2, len(source)), dtype=np.int64)
    inputs: Tensor | Segment
    if is_sequence(source):
        inputs, _ = next(TokenReader(source, context=1, device=device).batches([rows]))
    else:
        inputs, _ = next(InputReader(source, built.preprocessing, device=device).batches([rows]))
    was_training = built.module.training
    built.module.eval()
    try:
        with torch.inference_mode():
            logits = built.module(inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"model {name!r} cannot take inputs {tuple(inputs.shape)} of {source.name!r}: {str(error).splitlines()[0]}",
            hint="choose a model for this data, or a card that resizes it",
        ) from error
    finally:
        built.module.train(was_training)
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (len(rows), source.num_classes):
        raise IncompatibleError(
            f"model {name!r} gives {found} for {len(rows)} rows; expected ({len(rows)}, {source.num_classes}): one "
            f"logit for each class of {source.name!r}",
            hint="give the model the number of classes the factory is called with",
        )
