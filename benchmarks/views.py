"""Cost of recorded views against the same torchvision.v2 pipeline that records nothing: bench id `views`.

Both sides start from the same decoded uint8 images. Recorded: draw the outcomes, pack them, apply them. Replayed:
unpack stored outcomes and apply them, which is what a student pays. The goal is a ratio of at least 0.95 in rows/s.

`cifar` compares 256 images of 32 pixels a batch: `batch` is `ViewPolicy.apply_batch` against v2 image by image (v2
draws one crop for a whole batch, so a loop is its only way to independent crops), `single` is image by image on both
sides. `imagenet` is a crop box at the source's 375 x 500 pixels, resized to 224 by the model, against
RandomResizedCrop(224); `imagenet-strong` is given without a goal, with its colour ops at the source's pixels (the
preset) and at 224 (`size = 224` in a TOML file). `patient` compares whole batches of inputs, with `MixUp` of v2 on the
other side: v2 mixes a batch with itself, while a recorded partner is any row, so up to two images are augmented for
one. No goal is set for it; "mixing alone" is what is not the second image. Bytes per row: packed parameters of
one block of rows and the same after zstd, by row order, as the store's codec sees them.

    python -m benchmarks.views [--repeats 9] [--rows 65536]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as F
from numcodecs import Zstd
from torch import Tensor

from benchmarks.machine import median_ratio, paired_seconds, report
from kdcache.loader.mixing import plan_batch
from kdcache.views.mixing import drawn_mixing, mix_batch
from kdcache.views.ops import RandomResizedCrop
from kdcache.views.policy import PRESETS, ViewPolicy

GOAL = 0.95


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--rows", type=int, default=65536)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a loader's worker has one thread, and the ratio should not depend on spare cores
    figures = {
        "cifar batch": against_torchvision("cifar", 32, 32, 256, batched=True, repeats=options.repeats),
        "cifar single": against_torchvision("cifar", 32, 32, 256, batched=False, repeats=options.repeats),
        "imagenet single": against_torchvision("imagenet", 375, 500, 48, batched=False, repeats=options.repeats),
        "imagenet-strong single": against_torchvision(
            "imagenet-strong", 375, 500, 24, batched=False, repeats=options.repeats
        ),
        "imagenet-strong, view of 224 pixels, single": against_torchvision(
            "imagenet-strong", 375, 500, 24, batched=False, repeats=options.repeats, size=224
        ),
        "patient, batches of inputs": mixed_against_torchvision(375, 500, 24, repeats=options.repeats),
        "bytes per row": {name: bytes_per_row(name, options.rows) for name in PRESETS if name != "none"},
        "sampling, rows per second": {name: sampling_rate(name, options.rows) for name in PRESETS if name != "none"},
    }
    report("views", figures)


def torchvision_pipeline(name: str) -> Callable[[Tensor], Tensor]:
    """The transforms people write for this preset."""
    steps: dict[str, list[torch.nn.Module]] = {
        "cifar": [T.RandomCrop(32, padding=4), T.RandomHorizontalFlip()],
        "imagenet": [T.RandomResizedCrop(224, antialias=True), T.RandomHorizontalFlip()],
    }
    steps["imagenet-strong"] = [*steps["imagenet"], T.RandAugment(), T.RandomErasing(0.25, value=[124, 116, 104])]
    return T.Compose(steps[name])


def against_torchvision(
    name: str, height: int, width: int, rows: int, *, batched: bool, repeats: int, size: int = 0
) -> dict[str, object]:
    """Ratios of rows per second, recorded and replayed, to the pipeline that records nothing."""
    ops = tuple(replace(op, size=size) if isinstance(op, RandomResizedCrop) else op for op in PRESETS[name])
    policy, plain = ViewPolicy(name=name, ops=ops, seed=1), torchvision_pipeline(name)
    images, numbers = smooth_images(rows, height, width), np.arange(rows)
    sizes = np.tile(np.array([[height, width]]), (rows, 1))
    # Another view each time, as v2 draws afresh each time: a fixed set of boxes may be smaller or larger than most.
    views, stored_views = itertools.count(), itertools.count()
    packed = [policy.pack(policy.sample(numbers, view, sizes=sizes, num_rows=50_000)) for view in range(repeats + 1)]

    def finish(view: Tensor) -> Tensor:
        return F.resize_image(view, [224, 224], antialias=True) if policy.squashes else view

    def apply(outcomes: np.ndarray) -> object:
        if batched:
            return policy.apply_batch(images, outcomes)
        return [finish(policy.apply(image, outcome)) for image, outcome in zip(images, outcomes, strict=True)]

    def recorded() -> object:
        outcomes = policy.sample(numbers, next(views), sizes=sizes, num_rows=50_000)
        policy.pack(outcomes)
        return apply(outcomes)

    def replayed() -> object:
        return apply(policy.unpack(packed[next(stored_views)]))

    def unrecorded() -> object:
        return [plain(image) for image in images]

    first = paired_seconds(unrecorded, recorded, repeats=repeats)
    second = paired_seconds(unrecorded, replayed, repeats=repeats)
    ratio, again = median_ratio(first), median_ratio(second)
    figures: dict[str, object] = {"recorded / plain": round(ratio, 3), "replayed / plain": round(again, 3)}
    if name in ("cifar", "imagenet"):
        figures["goal met"] = ratio >= GOAL
    microseconds = [statistics.median(times) / rows * 1e6 for times in zip(*first, strict=True)]
    return {**figures, "plain us/row": round(microseconds[0], 1), "recorded us/row": round(microseconds[1], 1)}


def mixed_against_torchvision(height: int, width: int, rows: int, *, repeats: int) -> dict[str, object]:
    """Mixed float batches at 224: rows per second against v2's crop, flip and MixUp; microseconds of the mix alone."""
    policy, images = ViewPolicy.from_preset("patient", seed=1), smooth_images(2 * rows, height, width)
    plain = T.Compose([T.RandomResizedCrop(224, antialias=True), T.RandomHorizontalFlip()])
    mix_up, labels = T.MixUp(alpha=1.0, num_classes=1000), torch.zeros(rows, dtype=torch.int64)
    numbers, views = np.arange(rows), itertools.count()

    def inputs_of(chosen: np.ndarray, view: int) -> Tensor:
        sizes = np.tile(np.array([[height, width]]), (len(chosen), 1))
        outcomes = policy.sample(chosen, view, sizes=sizes, num_rows=50_000)
        policy.pack(outcomes)
        pairs = zip(chosen, outcomes, strict=True)
        seen = [policy.apply(images[row % len(images)], outcome) for row, outcome in pairs]
        return torch.stack([F.resize_image(view, [224, 224], antialias=True) for view in seen]).float().div_(255)

    def recorded() -> object:
        view = next(views)
        mix = drawn_mixing(policy, numbers, view, num_rows=50_000)
        assert mix is not None
        batch = plan_batch(numbers, view, mix)
        inputs = inputs_of(batch.needed, view)
        return mix_batch(inputs[batch.own], inputs[batch.partner], mix)

    def unrecorded() -> object:
        return mix_up(torch.stack([plain(image) for image in images[:rows]]).float().div_(255), labels)

    pairs = paired_seconds(unrecorded, recorded, repeats=repeats)
    mix = drawn_mixing(policy, numbers, 0, num_rows=50_000)
    assert mix is not None
    own, partner = torch.rand(rows, 3, 224, 224), torch.rand(rows, 3, 224, 224)
    alone = paired_seconds(lambda: own.clone(), lambda: mix_batch(own, partner, mix), repeats=repeats)
    microseconds = [
        statistics.median(times) / rows * 1e6 for times in (*zip(*pairs, strict=True), [b for _, b in alone])
    ]
    names = ("plain us/row", "recorded us/row", "mixing alone us/row")
    figures = dict(zip(names, (round(value, 1) for value in microseconds), strict=True))
    return {"recorded / plain": round(median_ratio(pairs), 3), **figures}


def smooth_images(rows: int, height: int, width: int) -> Tensor:
    """Seeded uint8 (rows, 3, height, width), smooth like photographs."""
    coarse = torch.rand(rows, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear").to(torch.uint8)


def sizes_like_imagenet(rows: int) -> np.ndarray:
    """(rows, 2) varied image sizes around 375 x 500, a third of them upright."""
    random = np.random.default_rng(0)
    sizes = np.stack([random.normal(375, 60, rows), random.normal(500, 80, rows)], axis=1).clip(100, 1000)
    upright = random.random(rows) < 1 / 3
    sizes[upright] = sizes[upright, ::-1]
    return sizes.astype(np.int64)


def bytes_per_row(name: str, rows: int) -> dict[str, float]:
    """Packed width, and what is left after zstd level 3 and 9."""
    policy = ViewPolicy.from_preset(name, seed=1)
    cropped = any(isinstance(op, RandomResizedCrop) for op in policy.ops)
    sizes = sizes_like_imagenet(rows) if cropped else np.full((rows, 2), 32)
    packed = policy.pack(policy.sample(np.arange(rows), 0, sizes=sizes, num_rows=rows))
    levels = {f"zstd {level}": round(len(Zstd(level=level).encode(packed.tobytes())) / rows, 2) for level in (3, 9)}
    return {"packed": policy.width, **levels}


def sampling_rate(name: str, rows: int) -> int:
    """Rows per second of drawing alone, in one call."""
    policy = ViewPolicy.from_preset(name, seed=1)
    numbers, sizes = np.arange(rows), np.tile(np.array([[375, 500]]), (rows, 1))

    def draw() -> object:
        return policy.sample(numbers, 0, sizes=sizes, num_rows=rows)

    pairs = paired_seconds(draw, draw, repeats=3)
    return round(rows / statistics.median(time for pair in pairs for time in pair))


if __name__ == "__main__":
    main()
