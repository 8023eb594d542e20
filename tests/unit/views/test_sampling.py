"""Outcomes: pure, inside their bounds, and distributed as the papers' transforms are."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop as RandomResizedCropV1

from kdcache.errors import ConfigError
from kdcache.views.ops import (
    AUGMENTATIONS,
    ColourJitter,
    Cutmix,
    HorizontalFlip,
    Mixup,
    MixupOrCutmix,
    Op,
    PadCrop,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    TrivialAugment,
    UserTransform,
)
from kdcache.views.sampling import _beta_levels, sample_outcomes, view_for_epoch

N = 20_000
ROWS = np.arange(N)
EVERY_OP: tuple[Op, ...] = (
    RandomResizedCrop(),
    PadCrop(),
    HorizontalFlip(),
    ColourJitter(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1, probability=0.8),
    RandAugment(),
    TrivialAugment(),
    RandomErasing(),
    UserTransform(code="mine.py:make", digest="0" * 64),
    MixupOrCutmix(),
)


def _sizes(n: int = N, height: int = 375, width: int = 500) -> np.ndarray:
    return np.tile(np.array([[height, width]]), (n, 1))


def _draw(op: Op, *, seed: int = 0, view: int = 0, sizes: np.ndarray | None = None, n: int = N) -> np.ndarray:
    return sample_outcomes((op,), seed, np.arange(n), view, sizes=_sizes(n) if sizes is None else sizes, num_rows=n)


def test_sampling_loads_no_torch() -> None:
    code = "import sys, kdcache.views.sampling; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("op", EVERY_OP, ids=lambda op: op.NAME)
def test_seed_and_view_and_row_all_matter(op: Op) -> None:
    first = _draw(op)
    np.testing.assert_array_equal(first, _draw(op))
    for other in (_draw(op, seed=1), _draw(op, view=1), np.roll(first, 1)):
        assert (first != other).mean() > 0.2


def test_two_ops_of_one_kind_draw_independently() -> None:
    twice = sample_outcomes((HorizontalFlip(), HorizontalFlip()), 0, ROWS, 0, sizes=_sizes(), num_rows=N)
    agree = (twice["0.flipped"] == twice["1.flipped"]).mean()
    assert abs(agree - 0.5) < 0.02


def test_neighbouring_seeds_views_and_rows_are_uncorrelated() -> None:
    def flips(seed: int, view: int) -> np.ndarray:
        return _draw(HorizontalFlip(), seed=seed, view=view)["0.flipped"] * 2.0 - 1

    here = flips(0, 0)
    for other in (flips(1, 0), flips(0, 1), np.roll(here, 1)):
        assert abs((here * other).mean()) < 0.03  # 4 standard errors


def test_crop_boxes_are_inside_and_have_the_asked_area_and_aspect() -> None:
    out = _draw(RandomResizedCrop())
    top, left, height, width = (out[f"0.{name}"].astype(int) for name in ("top", "left", "height", "width"))
    assert (top + height <= 375).all()
    assert (left + width <= 500).all()
    assert min(height.min(), width.min()) >= 1
    share = height * width / (375 * 500)
    assert 0.079 < share.min() < 0.09
    assert 0.9 < share.max() <= 1.0
    assert (width / height).min() > 0.74
    assert (width / height).max() < 1.35
    small = share < 0.4  # larger boxes are turned down more often when they are tall: the image is wide
    assert abs(np.log(width / height)[small].mean()) < 0.01
    slack = (375 - height) > 20
    assert abs((top[slack] / (375 - height[slack])).mean() - 0.5) < 0.01


def test_crop_boxes_are_distributed_as_torchvisions() -> None:
    image = torch.empty(3, 375, 500, dtype=torch.uint8)
    torch.manual_seed(0)
    reference = np.array(
        [RandomResizedCropV1.get_params(image, scale=[0.08, 1.0], ratio=[0.75, 4 / 3]) for _ in range(4000)],
        dtype=float,
    )
    out = _draw(RandomResizedCrop())
    ours = np.stack([out[f"0.{name}"].astype(float) for name in ("top", "left", "height", "width")], axis=1)
    error = 4 * reference.std(axis=0) / np.sqrt(len(reference))
    assert (abs(reference.mean(axis=0) - ours.mean(axis=0)) < error).all()
    assert (abs(reference.std(axis=0) - ours.std(axis=0)) < error).all()


def test_a_box_that_never_fits_becomes_the_central_crop() -> None:
    op = RandomResizedCrop(scale=(1.0, 1.0), ratio=(0.75, 4 / 3))
    out = _draw(op, sizes=_sizes(8, 10, 1000), n=8)[0]
    assert tuple(out) == (0, (1000 - 13) // 2, 10, 13)
    out = _draw(op, sizes=_sizes(8, 1000, 9), n=8)[0]
    assert tuple(out) == ((1000 - 12) // 2, 0, 12, 9)
    assert tuple(_draw(RandomResizedCrop(), sizes=_sizes(2, 1, 1), n=2)[0]) == (0, 0, 1, 1)


def test_later_ops_see_the_size_after_the_crop() -> None:
    # On 2 x 2 pixels a twentieth of the area is less than a pixel: nothing can be erased there.
    ops = (RandomResizedCrop(size=2), RandomErasing(probability=1.0, scale=(0.02, 0.05), ratio=(1.0, 1.0)))
    out = sample_outcomes(ops, 0, ROWS[:50], 0, sizes=_sizes(50), num_rows=50)
    assert (out["1.bottom"] == 0).all()


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_probabilities_are_kept(probability: float) -> None:
    flips = _draw(HorizontalFlip(probability=probability))["0.flipped"]
    erased = _draw(RandomErasing(probability=probability))
    jittered = _draw(ColourJitter(hue=0.1, probability=probability))["0.order"] != ColourJitter.SKIPPED
    mixed = _draw(Mixup(probability=probability))["0.partner"] != ROWS
    for happened in (flips, erased["0.bottom"] > erased["0.top"], jittered, mixed):
        assert abs(happened.mean() - probability) < 0.015


def test_erased_boxes_have_the_asked_share() -> None:
    out = _draw(RandomErasing(probability=1.0))
    top, left, bottom, right = (out[f"0.{name}"].astype(float) for name in ("top", "left", "bottom", "right"))
    share = (bottom - top) * (right - left) / 255**2
    assert 0.015 < share.min() < 0.03
    assert 0.3 < share.max() < 0.34
    assert abs(share.mean() - 0.175) < 0.01


def test_every_augmentation_and_both_signs_come_up_evenly() -> None:
    for name in ("0.choice0", "0.choice1"):
        counts = np.bincount(_draw(RandAugment())[name] & 127, minlength=len(AUGMENTATIONS))
        assert len(counts) == len(AUGMENTATIONS)
        assert abs(counts / N - 1 / len(AUGMENTATIONS)).max() < 0.01
    trivial = _draw(TrivialAugment())
    assert abs((trivial["0.choice"] >> 7).mean() - 0.5) < 0.015
    assert set(trivial["0.magnitude"].tolist()) == set(range(31))


def test_orders_of_colour_jitter_come_up_evenly() -> None:
    out = _draw(ColourJitter(brightness=0.4))
    assert abs(np.bincount(out["0.order"], minlength=24) / N - 1 / 24).max() < 0.01
    assert out["0.brightness"].min() == 0
    assert out["0.brightness"].max() == 255
    assert not out["0.hue"].any()  # a factor that cannot vary costs no entropy


@pytest.mark.parametrize("num_rows", [2, 3, 1000])
@pytest.mark.parametrize("op", [Mixup(), Cutmix(), MixupOrCutmix()], ids=lambda op: op.NAME)
def test_a_row_is_never_its_own_partner_and_the_others_come_up_evenly(op: Op, num_rows: int) -> None:
    rows = np.arange(num_rows)
    partners = [
        sample_outcomes((op,), 0, rows, view, sizes=_sizes(num_rows), num_rows=num_rows)["0.partner"].astype(int)
        for view in range(20)
    ]
    for partner in partners:
        assert (partner != rows).all()
        assert partner.min() >= 0
        assert partner.max() < num_rows
    if num_rows == 1000:
        offsets = (np.stack(partners) - rows) % num_rows
        assert abs(offsets.mean() - 500) < 10


def test_mixing_one_row_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 rows"):
        _draw(Mixup(), n=1)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 2.5, 8.0])
def test_mixing_weights_follow_the_beta_distribution(alpha: float) -> None:
    levels = _beta_levels(alpha) / 65535
    assert (np.diff(levels) >= 0).all()
    np.testing.assert_allclose(levels + levels[::-1], 1.0, atol=1e-12)
    assert abs(levels.var() - 1 / (4 * (2 * alpha + 1))) < 2e-4  # the variance of Beta(alpha, alpha)
    drawn = np.quantile(np.random.default_rng(0).beta(alpha, alpha, 400_000), [0.1, 0.25, 0.4])
    np.testing.assert_allclose(np.quantile(levels, [0.1, 0.25, 0.4]), drawn, atol=4e-3)


def test_mixup_and_cutmix_share_the_rows_as_asked() -> None:
    out = _draw(MixupOrCutmix(switch=0.3, probability=0.5))
    boxed = (out["0.bottom"] > out["0.top"]) & (out["0.right"] > out["0.left"])
    mixed = out["0.partner"] != ROWS
    assert not (boxed & ~mixed).any()
    assert (out["0.weight"][boxed] == 65535).all()
    assert abs(mixed.mean() - 0.5) < 0.015
    assert abs(boxed[mixed].mean() - 0.3) < 0.02


@pytest.mark.parametrize(
    ("rows", "view", "sizes", "says"),
    [
        ([0, 5], 0, [[8, 8]] * 2, "rows: expected 0 to 4"),
        ([-1], 0, [[8, 8]], "rows"),
        ([0], -1, [[8, 8]], "view"),
        ([0], 2**32, [[8, 8]], "view"),
        ([0], 0, [[8, 8, 3]], "sizes"),
        ([0], 0, [[8, 0]], "1 to 65535"),
        ([0], 0, [[8, 70000]], "1 to 65535"),
    ],
)
def test_requests_out_of_range_are_refused(rows: list[int], view: int, sizes: list[list[int]], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        sample_outcomes((PadCrop(),), 0, np.array(rows), view, sizes=np.array(sizes), num_rows=5)


def test_rows_beyond_32_bits_differ() -> None:
    rows = np.array([5, 5 + 2**32])
    out = sample_outcomes((UserTransform(code="a.py:f", digest="0" * 64),), 0, rows, 0, sizes=_sizes(2), num_rows=2**33)
    assert out["0.seed"][0] != out["0.seed"][1]


def test_epochs_walk_through_the_views() -> None:
    assert [view_for_epoch(epoch, 3) for epoch in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    shuffled = [view_for_epoch(epoch, 8, order="random", seed=4) for epoch in range(24)]
    assert all(sorted(shuffled[i : i + 8]) == list(range(8)) for i in (0, 8, 16))
    assert shuffled[:8] != shuffled[8:16]
    assert shuffled == [view_for_epoch(epoch, 8, order="random", seed=4) for epoch in range(24)]
    with pytest.raises(ConfigError, match="cycle"):
        view_for_epoch(0, 2, order="backwards")
