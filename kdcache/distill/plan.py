"""A distillation request made definite: every default filled in and everything checked before the first step.

The store is sealed, the data set is row by row the one it was made from, classes agree, the method has what it needs,
k, T and alpha are in range. `run.distill` then only trains. The teacher plays no part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcache.canonical import to_json
from kdcache.datasets.cards import Card, open_dataset
from kdcache.datasets.identity import check_identity, content_digest
from kdcache.datasets.sequences import TokenSource, check_sequences, is_sequence
from kdcache.datasets.source import ArraySource, DataSource
from kdcache.distill.config import DistillConfig
from kdcache.distill.follow import followed_form, open_for_training
from kdcache.distill.views import check_mixing, check_replay, shown_views
from kdcache.errors import ConfigError, IncompatibleError
from kdcache.lineage import lineage_of
from kdcache.loader.inputs import InputReader
from kdcache.loader.target_store import TargetStore, open_store
from kdcache.metrics import Evaluation
from kdcache.models.registry import BuiltModel
from kdcache.progress import note
from kdcache.targets.method import Method
from kdcache.targets.methods import find_method
from kdcache.training.batch import Feed, TrainingFeed
from kdcache.training.config import TrainingConfig
from kdcache.training.loop import TrainingResult
from kdcache.training.objective import Objective
from kdcache.training.processes import Processes
from kdcache.training.runs import default_run_folder
from kdcache.training.setup import (
    build_for_training,
    card_of,
    default_run_name,
    evaluation_on,
    evaluation_split,
)
from kdcache.training.token_rows import token_feed
from kdcache.version import __version__
from kdcache.views.mixing import mixes

KEPT_BY = {  # dump-teacher's option, for each field that not every store holds
    "sample_index": "--samples 50",
    "sample_count": "--samples 50",
    "view 2": "--views 2 --augment cifar",
}
ROWS_READ_FIRST = 512  # of file-backed data; the others are compared as they pass in the first epoch


def check_request(config: DistillConfig, store: TargetStore) -> None:
    """What can be said about a request without its data: k, T, alpha, options, and what the method needs of the store.

    Raises:
        ConfigError, IncompatibleError: as `DistillPlan`, which checks the same.
    """
    method = find_method(config.method)
    dataset = config.dataset or store.manifest.dataset.card
    card = card_of(dataset) if dataset else None
    defaults = card.defaults if card is not None else {}
    ours = defaults.get("methods", {}).get(config.method, {})
    _, _, options = _method_settings(config, method, defaults, ours)
    _choose_topk(config.topk, method.default_topk, store)
    _check_needs(method, store, config.views)
    check_mixing(store, method, options)


class DistillPlan:
    """A request with every default filled in and every check done; builds what `train` needs."""

    def __init__(self, config: DistillConfig, processes: Processes) -> None:
        self._config = config
        self._processes = processes
        self.store, self.follower = open_for_training(config, processes)
        self._dataset = config.dataset or self.store.manifest.dataset.card
        if not self._dataset:
            raise ConfigError(f"{self.store.location} names no data card", hint="name the data set with --dataset")
        self._card: Card | None = card_of(self._dataset)
        self._method = find_method(config.method)
        defaults = self._card.defaults if self._card is not None else {}
        ours = defaults.get("methods", {}).get(config.method, {})
        self.training: TrainingConfig = config.training({**defaults, **ours})
        self._temperature, self._alpha, self._options = _method_settings(config, self._method, defaults, ours)
        self._topk = _choose_topk(config.topk, self._method.default_topk, self.store)
        _check_needs(self._method, self.store, config.views)
        check_mixing(self.store, self._method, self._options)
        self._student = config.student or defaults.get("student", "")
        if not self._student:
            raise ConfigError("no student was named and the data card has no default", hint="name one with --student")
        self._split = self.store.manifest.dataset.split
        self.eval_split = config.eval_split or evaluation_split(self._card, self._split)
        self._shown = shown_views(self.store, config, config.augment or defaults.get("augment"))
        self.folder = Path(config.out) if config.out else self._default_folder()

    def prepare(self) -> None:
        """Open and check the data, build the student, read what the method needs of the store."""
        config, manifest = self._config, self.store.manifest
        self._source = open_dataset(self._dataset, split=self._split, root=config.data_root)
        if self.follower is not None:
            self.follower.ready([0], self._topk)  # it has the labels, and what a method computes from a whole view
        whole = isinstance(self._source, ArraySource | TokenSource)
        check_identity(
            self._source,
            manifest.dataset,
            self.store.labels,
            self.store.row_digests,
            sample=len(self._source) if whole else ROWS_READ_FIRST,
        )
        if is_sequence(self._source):
            content = content_digest(self._source)
            check_sequences(self._source, manifest.dataset, content, self.store.sequence_offsets)
        self._unseen = None if whole or manifest.dataset.identity == "weak" else self.store.row_digests
        self._test: DataSource = open_dataset(self._dataset, split=self.eval_split, root=config.data_root)
        if self._test.num_classes != manifest.dataset.num_classes:
            raise IncompatibleError(
                f"{self._test.name!r} ({self.eval_split}) has {self._test.num_classes} classes, the store "
                f"{manifest.dataset.num_classes}",
                hint="name another split with --eval-split",
            )
        self._eval_teacher = self._open_eval_store()
        self.student: BuiltModel = build_for_training(
            self._student, self._source, self._card, seed=self.training.seed, device=self._processes.device
        )
        check_replay(
            self._shown,
            self.store,
            self._source,
            self.student.preprocessing,
            self._processes.device,
            allow_drift=config.allow_view_drift,
            targets_used=self._reads_store,
        )
        self._token_feed: Feed | None = None
        if is_sequence(self._source):
            store = self.store if self._reads_store else None
            self._token_feed = token_feed(
                self._source, self.student.module, self.training, self._processes, store=store, topk=self._topk
            )
        if manifest.dataset.identity == "weak":
            note("identity: weak - only labels and length of the data set could be checked against the store")
        if self._method.name == "tfkd-self" and manifest.teacher.source != self._student:
            note(
                f"tfkd-self: the store's teacher is {manifest.teacher.source!r}, the student {self._student!r}; the "
                "method is about a teacher of the student's own architecture (kd is the same loss)"
            )
        context = self._method.prepare(self.store, options=self._options, temperature=self._temperature)
        if context.module is not None:
            context.module.to(self._processes.device)
        self.objective = Objective(
            method=self._method,
            temperature=self._temperature,
            alpha=self._alpha,
            options=self._options,
            context=context,
        )

    def _open_eval_store(self) -> TargetStore | None:
        if not self._config.eval_store:
            return None
        teacher = open_store(self._config.eval_store, device=self._processes.device)
        check_identity(self._test, teacher.manifest.dataset, teacher.labels, teacher.row_digests)
        return teacher

    @property
    def _reads_store(self) -> bool:
        """Whether the method wants the rows' targets; ce and ls then cost what they cost without a store."""
        return bool(self._method.needs or self._method.make_context)

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """Who taught this student: the store's teacher, its teacher, and so on; empty for methods without a teacher."""
        return lineage_of(self.store.manifest.teacher) if self._reads_store else []

    def feed(self) -> Feed:
        """Batches with targets; for methods that need none the store is still the one the run is compared by."""
        if self._token_feed is not None:
            return self._token_feed
        reader = InputReader(
            self._source,
            self.student.preprocessing,
            self._shown.policy,
            workers=self._config.workers,
            device=self._processes.device,
            stored_params=self.store.view_params if self._shown.recorded else None,
        )
        return TrainingFeed(
            reader,
            torch.tensor(self._source.labels).to(self._processes.device),
            batch_size=self.training.batch_size,
            seed=self.training.seed,
            rank=self._processes.rank,
            world_size=self._processes.world_size,
            store=self.store if self._reads_store or mixes(self.store.manifest.views) else None,
            topk=self._topk,
            view_of_epoch=self._shown.of_epoch,
            second_of_epoch=self._shown.beside_epoch if "view 2" in self._method.needs else None,
            digests=self._unseen,
        )

    def before_epoch(self, epoch: int) -> None:
        """Wait for what an epoch (counted from 0) reads of a store that is still written."""
        if self.follower is not None:
            self.follower.ready(self._views_of(epoch), self._topk)

    def _views_of(self, epoch: int) -> list[int]:
        if not self._shown.recorded:
            return [0] if self._reads_store else []
        beside = self._shown.beside_epoch if "view 2" in self._method.needs else None
        return [self._shown.of_epoch(epoch), *([] if beside is None else [beside(epoch)])]

    def evaluate(self) -> Callable[[nn.Module], Evaluation]:
        """The evaluation function on the test rows."""
        return evaluation_on(
            self._test,
            self.student.preprocessing,
            self._processes,
            workers=self._config.workers,
            teacher=self._eval_teacher,
            context=self.training.context,
        )

    def decides(self) -> dict[str, Any]:
        """What decides the result, as config.json keeps it; a resumed run must have the same."""
        manifest = self.store.manifest
        root_digest = manifest.root_digest if self.follower is None else self.follower.root_digest
        content: dict[str, Any] = to_json(
            {
                "student": self._student,
                "method": self._method.name,
                "topk": self._topk if self._reads_store else None,
                "temperature": self._method.checked_temperature(self._temperature, None)
                if self._method.default_temperature is not None
                else None,
                "alpha": self._method.checked_alpha(self._alpha) if self._method.default_alpha is not None else None,
                "options": self._method.checked_options(self._options),
                "training": self.training.decides(),
                "augment": self._shown.policy.spec() if self._shown.policy is not None else None,
                "dataset": self._dataset,
                "split": self._split,
                "eval_split": self.eval_split,
                "content_digest": manifest.dataset.content_digest,
                "store_key": manifest.store_key,
                "store_root_digest": root_digest,
                **self._shown.decides,
                "processes": self._processes.world_size,
            }
        )
        return content if root_digest else followed_form(content, self.store)

    def figures(self, trained: TrainingResult) -> dict[str, Any]:
        """result.json."""
        decided = self.decides()
        del decided["training"]
        agreement = trained.last.agreement
        return {
            **decided,
            **trained.figures(),
            "agreement": agreement,
            "agreement_on": None if agreement is None else self.eval_split,
            "train_agreement": trained.train.get("train_agreement"),
            "rescaling": {name: value for name, value in trained.train.items() if not name.startswith("train_")},
            "rows": self.store.num_rows,
            "parameters": sum(parameter.numel() for parameter in self.student.module.parameters()),
            "method_facts": dict(self.objective.context.facts or {}),
            "store": self.store.location,
            "kdcache": __version__,
            **asdict(self.training),
        }

    def _default_folder(self) -> Path:
        name = default_run_name(
            self.store.manifest.dataset.name, self._student, self._method.name, f"seed{self.training.seed}"
        )
        return default_run_folder(name, resume=self._config.resume)


def _method_settings(
    config: DistillConfig, method: Method, defaults: Mapping[str, Any], ours: Mapping[str, Any]
) -> tuple[float | None, float | None, dict[str, object]]:
    """Temperature, alpha and options: given, else the card's for this method, else the card's, else the method's."""
    options = method.checked_options({**ours.get("options", {}), **config.options})
    knobs = []
    for name, own in (("temperature", method.default_temperature), ("alpha", method.default_alpha)):
        given = getattr(config, name)
        knobs.append(given if given is not None or own is None else ours.get(name, defaults.get(name)))
    temperature, alpha = knobs
    method.checked_temperature(temperature, None)
    method.checked_alpha(alpha)
    return temperature, alpha, options


def _choose_topk(asked: int | None, default: int | None, store: TargetStore) -> int:
    if asked is None:
        return min(default or store.topk, store.topk)
    if asked < 1:
        raise ConfigError(f"topk: expected at least 1, found {asked}")
    if asked > store.topk:
        raise IncompatibleError(
            f"{store.location}: topk {asked} asked for, the store holds {store.topk} of {store.num_classes} classes",
            hint=f"use --topk {store.topk} or less, or dump again with kdcache dump-teacher --topk {asked}",
        )
    return asked


def _check_needs(method: Method, store: TargetStore, views: int | None) -> None:
    manifest = store.manifest
    always = ("topk_index", "topk_log_prob", "tail", "label", "label_log_prob")
    for name in method.needs:
        if name == "view 2" and manifest.num_views >= 2:
            if views == 1:
                raise ConfigError(
                    f"method {method.name} needs two views, found --views 1", hint="use --views 2 or more"
                )
            continue
        if name not in always and name not in manifest.codec.fields:
            option = KEPT_BY.get(name, f"an option that keeps {name}")
            raise IncompatibleError(
                f"method {method.name} needs {name!r}, which {store.location} does not hold",
                hint=f"dump again with kdcache dump-teacher {option}; see kdcache methods {method.name}",
            )
