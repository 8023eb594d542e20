"""What a scale would cost, before anything runs: operations of its models, bytes of its features.

Operations are counted on the real models. A training step is three forward passes of the student; a policy adds one
more, in eval mode. Hours come from one stated number, the operations a second the machine really does.
"""

from __future__ import annotations

import torch

from kdcache.datasets.cards import Card, load_card
from kdcache.features.table import DISTILLERS
from kdcache.models.registry import build_model
from kdcache.progress import duration
from pipelines.partial_kd.cost import TRAINING, forward_operations
from pipelines.spot_adaptive.half_size import half_card
from pipelines.spot_adaptive.network import PENULTIMATE, SplitNetwork
from pipelines.spot_adaptive.recipe import HALF_SIZE, Recipe
from pipelines.spot_adaptive.routing import READS_POLICY
from pipelines.spot_adaptive.teachers import NAMES
from pipelines.spot_adaptive.training import OUTSIDE, StudentConfig

TARGET_BYTES = 36  # a row and view without features: top 10, tail and label (docs/store-format.md)
LIVE_STEP = 3  # a clean forward pass of the teacher, one over mixed values, and that one's gradient


def cost_lines(recipe: Recipe, *, live: bool) -> list[str]:
    """The cost of a scale in a few lines, from its settings alone.

    Args:
        recipe: the scale.
        live: also the students whose teacher runs in every step.
    """
    card = half_card() if recipe.dataset == HALF_SIZE else load_card(recipe.dataset)
    teacher, student = (forward_operations(each["model"], card) for each in (recipe.teacher, recipe.student))
    students = [config for _, config in recipe.students(live=live)]
    views, features = int(recipe.dump["views"]), feature_bytes(recipe, card)
    trained = sum(_student_passes(config) * config.epochs for config in students) * student * recipe.rows
    asked = [config for config in students if config.method != "ce"]
    saved = sum(config.epochs for config in asked if not config.live_teacher) * teacher * recipe.rows
    spent = sum(config.epochs for config in asked if config.live_teacher) * LIVE_STEP * teacher * recipe.rows
    size = recipe.rows * views * (TARGET_BYTES + sum(features.values()))

    def time(operations: float) -> str:
        return f"{duration(operations / (recipe.tflops * 1e12))} ({operations / 1e15:,.3g} PFLOP)"

    lines = [
        f"rate      {recipe.tflops:g} TFLOP/s assumed",
        f"teacher   {recipe.teacher['model']}: {time(TRAINING * teacher * recipe.rows * recipe.teacher['epochs'])} of "
        "training at least (more where it reads more rows than the students)",
        f"dump      {time(teacher * recipe.rows * views)}: {recipe.rows:,} rows x {views} views, once",
        f"bytes     {size / 1e9:,.1f} GB before compression; a row and view: targets {TARGET_BYTES}, "
        + ", ".join(f"{name} {count:,}" for name, count in features.items()),
        f"students  {len(students)} of {recipe.student['model']}: {time(trained)}",
        f"saved     {time(saved)} of teacher, had they asked it in every step",
    ]
    return [*lines, *([f"live      {time(spent)} of teacher, {OUTSIDE}"] if live else [])]


def feature_bytes(recipe: Recipe, card: Card) -> dict[str, int]:
    """Bytes of a row and view of each feature of the dump, uncompressed."""
    module = build_model(
        recipe.teacher["model"], num_classes=card.num_classes, input_shape=card.image_shape, data=card.preprocessing
    ).module
    spots = {name: spot for spot, name in NAMES.items()}
    names = [name.strip() for name in str(recipe.dump["features"]).split(",")]
    example = torch.zeros(2, *card.image_shape)
    shapes = SplitNetwork(module, example).shapes(example, [*(spots[name] for name in names), PENULTIMATE])
    width = 4 if recipe.dump["feature_dtype"] == "float32" else 2
    return {name: width * torch.Size(shapes[spots[name]]).numel() for name in names}


def _student_passes(config: StudentConfig) -> int:
    routed = config.method in DISTILLERS and config.control in READS_POLICY
    return TRAINING + int(routed)
