"""`train-teacher`: train a model on labels alone, for people without weights; the same loop as `distill`.

The run folder's `last.safetensors` is directly a `--weights` for `dump-teacher`; how it was trained is written into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from kdcache.canonical import to_json
from kdcache.datasets.cards import open_dataset
from kdcache.datasets.identity import content_digest
from kdcache.datasets.sequences import is_sequence
from kdcache.errors import ConfigError
from kdcache.loader.inputs import InputReader
from kdcache.models.registry import BuiltModel
from kdcache.progress import note
from kdcache.targets.methods import find_method
from kdcache.training.batch import Feed, TrainingFeed
from kdcache.training.config import TrainingConfig, TrainingOptions
from kdcache.training.loop import TrainingResult, train
from kdcache.training.objective import Objective
from kdcache.training.processes import Processes, joined_processes
from kdcache.training.runs import RunFolder, default_run_folder
from kdcache.training.setup import (
    build_for_training,
    card_of,
    default_run_name,
    evaluation_on,
    evaluation_split,
    random_augmentation,
)
from kdcache.training.token_rows import token_feed
from kdcache.version import __version__

METHODS = ("ce", "ls")
_TEACHER_KEYS = {"teacher_epochs": "epochs", "teacher_lr": "lr"}  # a card's defaults for teachers: theirs first


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(TrainingOptions):
    """One teacher to train; "" and None mean the data card's default.

    Attributes:
        dataset: card name, card.toml or file.py:factory.
        model: built-in name, torchvision:NAME, timm:NAME or file.py:factory.
        method: "ce", or "ls" (label smoothing: its teachers know less about class relations).
        options: the method's options, for example smoothing.
        split: rows to train on.
        eval_split: rows to evaluate on.
    """

    dataset: str = "digit-pairs"
    data_root: Path | None = None
    model: str = ""
    method: str = "ce"
    options: Mapping[str, object] = field(default_factory=dict)
    split: str = ""
    eval_split: str = ""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method {self.method!r}: a teacher is trained with ce or ls", hint="use --method ce")


@dataclass(frozen=True, kw_only=True)
class TeacherResult:
    """A trained teacher.

    Attributes:
        folder: the run folder.
        weights: the weights of the last epoch, for `dump-teacher --weights`.
        figures: the same numbers as the folder's result.json.
        reused: the run was finished already; nothing was trained.
    """

    folder: Path
    weights: Path
    figures: Mapping[str, Any]
    reused: bool = False

    def to_json(self) -> dict[str, Any]:
        """The figures with folder and weights, for `--json`."""
        return {"out": str(self.folder), "weights": str(self.weights), "reused": self.reused, **self.figures}


def train_teacher(config: TeacherConfig) -> TeacherResult:
    """Train a teacher on a data set's labels.

    Raises:
        ConfigError, NotFoundError, IncompatibleError: the request cannot be met; found before the first step.
        NumericError: the loss became NaN or infinite; names the rows, and the last good checkpoint is kept.
    """
    with joined_processes(config.device) as processes:
        plan = _Plan(config, processes)
        folder = RunFolder(plan.folder, writes=processes.is_first, keep_every=config.keep_every)
        weights = folder.path / "last.safetensors"
        decides = plan.decides()
        if config.resume and (finished := folder.result()) is not None:
            folder.start(decides, resume=True)
            note(f"{folder.path}: this run is finished; nothing was trained")
            return TeacherResult(folder=folder.path, weights=weights, figures=finished, reused=True)
        model = plan.build()
        feed = plan.feed(model)
        test = open_dataset(config.dataset, split=plan.eval_split, root=config.data_root)
        folder.start(decides, resume=config.resume)
        processes.wait()
        trained = train(
            model.module,
            feed,
            plan.objective,
            evaluation_on(test, model.preprocessing, processes, workers=config.workers, context=plan.training.context),
            plan.training,
            folder,
            processes,
            evaluated_on=plan.eval_split,
            resume=config.resume,
            provenance={"recipe": "train-teacher", "kdcache": __version__, **decides},
        )
        figures = _figures(decides, plan.training, trained, model)
        folder.finish(figures)
        processes.wait()
    return TeacherResult(folder=folder.path, weights=weights, figures=figures)


class _Plan:
    """A request with every default filled in."""

    def __init__(self, config: TeacherConfig, processes: Processes) -> None:
        self._config = config
        self._processes = processes
        self._card = card_of(config.dataset)
        defaults = dict(self._card.defaults) if self._card is not None else {}
        defaults |= {plain: defaults[name] for name, plain in _TEACHER_KEYS.items() if name in defaults}
        self.training: TrainingConfig = config.training(defaults)
        self._model = config.model or defaults.get("teacher", "")
        if not self._model:
            raise ConfigError("no model was named and the data card has no default", hint="name one with --model")
        self._split = config.split or defaults.get("teacher_split", "train")
        self.eval_split = config.eval_split or evaluation_split(self._card, self._split)
        self._policy = random_augmentation(config.augment or defaults.get("augment"), seed=config.seed)
        method = find_method(config.method)
        self.objective = Objective(method=method, options=method.checked_options(config.options))
        self._source = open_dataset(config.dataset, split=self._split, root=config.data_root)
        name = default_run_name(self._source.name, self._model, "teacher", f"seed{config.seed}")
        self.folder = Path(config.out) if config.out else default_run_folder(name, resume=config.resume)

    def build(self) -> BuiltModel:
        """The model with random initial weights, on the device."""
        return build_for_training(
            self._model, self._source, self._card, seed=self.training.seed, device=self._processes.device
        )

    def feed(self, model: BuiltModel) -> Feed:
        """Batches of inputs and labels; every epoch draws its augmentation afresh."""
        if is_sequence(self._source):
            return token_feed(self._source, model.module, self.training, self._processes)
        reader = InputReader(
            self._source,
            model.preprocessing,
            self._policy,
            workers=self._config.workers,
            device=self._processes.device,
        )
        return TrainingFeed(
            reader,
            torch.tensor(self._source.labels).to(self._processes.device),
            batch_size=self.training.batch_size,
            seed=self.training.seed,
            rank=self._processes.rank,
            world_size=self._processes.world_size,
            view_of_epoch=lambda epoch: epoch,
        )

    def decides(self) -> dict[str, Any]:
        """What decides the result, as config.json keeps it; a resumed run must have the same."""
        content: dict[str, Any] = to_json(
            {
                "model": self._model,
                "method": self.objective.method.name,
                "options": self.objective.options,
                "training": self.training.decides(),
                "augment": self._policy.spec() if self._policy is not None else None,
                "dataset": self._config.dataset,
                "split": self._split,
                "eval_split": self.eval_split,
                "content_digest": content_digest(self._source),
                "processes": self._processes.world_size,
            }
        )
        return content


def _figures(
    decides: Mapping[str, Any], training: TrainingConfig, trained: TrainingResult, model: BuiltModel
) -> dict[str, Any]:
    """result.json."""
    plain = {name: value for name, value in decides.items() if name != "training"}
    return {
        **plain,
        **trained.figures(),
        "parameters": sum(parameter.numel() for parameter in model.module.parameters()),
        "kdcache": __version__,
        **asdict(training),
    }
