"""What a recipe would cost, before anything runs: arithmetic of its models, bytes of its stores.

Operations are counted on the real models (a multiplication and an addition are two), a step of training as three
forward passes. Hours come from one stated number: the operations a second the machine really does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdcache.canonical import digest_of
from kdcache.datasets.cards import Card, load_card, open_dataset
from kdcache.datasets.row_range import parse_split
from kdcache.loader.inputs import example_shape
from kdcache.models.registry import build_model
from kdcache.progress import duration
from kdcache.specs import CodecSpec, DatasetSpec, PreprocessingSpec, StoreManifest, TeacherSpec, ViewSpec
from kdcache.store.layout import layout_of, row_bytes
from kdcache.views.policy import ViewPolicy
from pipelines.partial_kd.recipe import MAIN, Arm, Recipe

TRAINING = 3  # forward, gradient of the inputs, gradient of the weights
TOKENS = ("text", "tokens")  # sources of cards


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a recipe would cost.

    Attributes:
        teachers: operations to train all teachers; 0 where weights are given.
        dumps: operations of the dumps, each once.
        students: operations of all students, trials included.
        live: operations of the teacher if every student that needs it asked it in every step.
        count: students; trials: of them to choose settings.
        rows, views: of a store; row_bytes: of one row and view before compression; stores: how many.
        rate: operations a second.
    """

    teachers: float
    dumps: float
    students: float
    live: float
    count: int
    trials: int
    rows: int
    views: int
    row_bytes: int
    stores: int
    rate: float

    def __str__(self) -> str:
        size = self.rows * self.views * self.row_bytes
        return "\n".join(
            (
                f"rate      {self.rate / 1e12:g} TFLOP/s assumed",
                f"teachers  {self._time(self.teachers)} of training",
                f"dumps     {self._time(self.dumps)}: {self.rows:,} rows x {self.views} views, {self.stores} store(s)",
                f"bytes     {size / 1e9:,.2f} GB a store at most ({self.row_bytes} a row and view before compression)",
                f"students  {self._time(self.students)}: {self.count} students, {self.trials} trials",
                f"live      {self._time(self.live)} of teacher, had the students asked it in every step",
            )
        )

    def _time(self, operations: float) -> str:
        return f"{duration(operations / self.rate)} ({operations / 1e15:,.3g} PFLOP)"


def cost_of(recipe: Recipe) -> Cost:
    """The cost of a recipe, from its settings alone.

    Raises:
        NotFoundError: the scale names no `rows`, its split does not say how many there are, and the data are not here.
    """
    card = known_shape(load_card(recipe.dataset), split=recipe.split, root=recipe.data_root)
    rows, views = _rows(recipe, recipe.split), int(recipe.dump.get("views", 1))
    teacher, student = (
        forward_operations(name, card) for name in (recipe.teachers[MAIN]["model"], recipe.student["model"])
    )
    trained = {
        name: _trained(recipe, settings) for name, settings in recipe.teachers.items() if not _given(recipe, name)
    }
    students = [(arm, recipe.student_settings(arm, seed, {})) for arm in recipe.arms for seed in arm.seeds]
    trials = [] if recipe.tuning is None else list(_trials(recipe))
    epochs = [settings["epochs"] for _, settings in (*students, *trials)]
    asking = [settings["epochs"] for arm, settings in (*students, *trials) if arm.reads_teacher]
    return Cost(
        teachers=TRAINING * teacher * sum(trained.values()),
        dumps=teacher * rows * views * len(recipe.teachers),
        students=TRAINING * student * rows * sum(epochs),
        live=teacher * rows * sum(asking),
        count=len(students),
        trials=len(trials),
        rows=rows,
        views=views,
        row_bytes=_row_bytes(recipe, card, rows, views),
        stores=len(recipe.teachers),
        rate=recipe.tflops * 1e12,
    )


def known_shape(card: Card, *, split: str, root: Path | None) -> Card:
    """The card with the number of classes and the shape of an example where only the data say them.

    Raises:
        NotFoundError: the card does not say them, and the data are not here.
    """
    if card.num_classes and (card.image_shape or card.source in TOKENS):
        return card
    source = open_dataset(str(card.file), split=split, root=root)
    shape = card.image_shape or (() if card.source in TOKENS else example_shape(source))
    return replace(card, num_classes=source.num_classes, image_shape=shape)


def forward_operations(model: str, card: Card) -> float:
    """Operations of one forward pass of one row; the card says classes and shape (`known_shape`)."""
    with torch.random.fork_rng(devices=[]):
        built = build_model(model, num_classes=card.num_classes, input_shape=card.image_shape, data=card.preprocessing)
    module = built.module.eval()
    if card.source in TOKENS:  # a token: every weight but the embedding's row is used once
        parts = [part for part in module.modules() if not isinstance(part, nn.Embedding)]
        used = {id(weight): weight for part in parts for weight in part.parameters(recurse=False)}
        return 2.0 * sum(weight.numel() for weight in used.values() if weight.ndim >= 2)
    shape = built.preprocessing.output_shape(card.image_shape)
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        module.to("meta")(torch.empty(1, *shape, device="meta"))
    return float(counter.get_total_flops())


def _given(recipe: Recipe, teacher: str) -> bool:
    return teacher == MAIN and recipe.weights is not None


def _trained(recipe: Recipe, settings: Mapping[str, Any]) -> int:
    """Rows that a teacher's training reads over all epochs."""
    return _rows(recipe, settings.get("split", recipe.split)) * int(settings["epochs"])


def _trials(recipe: Recipe) -> list[tuple[Arm, dict[str, Any]]]:
    assert recipe.tuning is not None
    arms = {arm.method: arm for arm in reversed(recipe.arms) if arm.tuned_as == arm.method}
    return [
        (arm, recipe.student_settings(arm, recipe.tuning.seed, tried, trial=number))
        for method, arm in arms.items()
        for number, tried in enumerate(recipe.tuning.trials(method))
    ]


def _rows(recipe: Recipe, split: str) -> int:
    """Rows of a split: as it says itself, else the scale's `rows`, else those of the data, which must then be here."""
    _, start, stop = parse_split(split)
    if stop is None:
        stop = recipe.rows
    return len(open_dataset(recipe.dataset, split=split, root=recipe.data_root)) if stop is None else stop - start


def _row_bytes(recipe: Recipe, card: Card, rows: int, views: int) -> int:
    """Bytes of a row and view before compression, by the store's own layout."""
    policy = ViewPolicy.named(recipe.dump.get("augment", "none"))
    classes = card.num_classes
    manifest = StoreManifest(
        format_version=1,
        dataset=DatasetSpec(
            name=card.name,
            split=recipe.split,
            num_rows=rows,
            num_classes=classes,
            content_digest=digest_of("content"),
            label_digest=digest_of("labels"),
        ),
        teacher=TeacherSpec(
            source=recipe.teachers[MAIN]["model"],
            weights="",
            weights_sha256=digest_of("weights"),
            state_digest=digest_of("weights"),
            code_digest=digest_of("code"),
            preprocessing=PreprocessingSpec(),
        ),
        views=ViewSpec(policy=policy.name),
        codec=CodecSpec(topk=classes if recipe.topk == "all" else int(recipe.topk)),
        num_views=views,
        block_rows=65_536,
    )
    return row_bytes(layout_of(manifest)) + policy.width
