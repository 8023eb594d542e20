"""Replay is bit-equal for every policy: whatever the batch, the order, the worker or the process that replays it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from kdcache.canonical import canonical_json, from_json, to_json
from kdcache.specs import ViewSpec
from kdcache.views import pixels
from kdcache.views.mixing import Mix, mix_pixels, mixing_of
from kdcache.views.ops import (
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
)
from kdcache.views.policy import PRESETS, ViewPolicy
from kdcache.views.sampling import Outcomes

ROOT = Path(__file__).resolve().parents[2]
N = 12
FRACTION = st.floats(0, 1, allow_subnormal=False)
SPAN = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted).map(tuple)
ASPECT = st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(sorted).map(tuple)
AUGMENT = {
    "bins": st.just(31),
    "interpolation": st.sampled_from(["nearest", "bilinear"]),
    "fill": st.sampled_from([(0,), (7,)]),
}
PIXEL_OP = st.one_of(
    st.builds(RandomResizedCrop, scale=SPAN, ratio=ASPECT, size=st.sampled_from([0, 2, 9])),
    st.builds(PadCrop, padding=st.integers(1, 12)),
    st.builds(HorizontalFlip, probability=FRACTION),
    st.builds(
        ColourJitter,
        brightness=FRACTION,
        contrast=FRACTION,
        saturation=FRACTION,
        hue=st.floats(0, 0.5),
        probability=FRACTION,
    ),
    st.builds(RandAugment, num_ops=st.integers(1, 3), magnitude=st.integers(0, 30), **AUGMENT),
    st.builds(TrivialAugment, **AUGMENT),
    st.builds(RandomErasing, probability=FRACTION, scale=SPAN, ratio=ASPECT),
)
ALPHA = st.floats(0.05, 8)
MIX_OP = st.one_of(
    st.builds(Mixup, alpha=ALPHA, probability=FRACTION),
    st.builds(Cutmix, alpha=ALPHA, probability=FRACTION),
    st.builds(MixupOrCutmix, mixup_alpha=ALPHA, cutmix_alpha=ALPHA, switch=FRACTION, probability=FRACTION),
)


@st.composite
def policies(draw: st.DrawFn) -> ViewPolicy:
    ops: list[Op] = draw(st.lists(PIXEL_OP, max_size=4))
    mixing = draw(st.none() | MIX_OP)
    return ViewPolicy(name="drawn", ops=(*ops, *([mixing] if mixing else [])), seed=draw(st.integers(0, 2**63)))


def _images(sizes: np.ndarray, channels: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (channels, int(height), int(width)), dtype=torch.uint8, generator=generator)
        for height, width in sizes
    ]


def _draw(policy: ViewPolicy, sizes: np.ndarray, rows: np.ndarray, view: int = 0) -> Outcomes:
    return policy.sample(rows, view, sizes=sizes[rows], num_rows=len(sizes))


@settings(max_examples=120, deadline=None)
@given(
    policy=policies(),
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=N, max_size=N).map(np.array),
    view=st.integers(0, 2**32 - 1),
    order=st.permutations(range(N)),
    cuts=st.lists(st.integers(1, N - 1), max_size=3, unique=True).map(sorted),
    channels=st.sampled_from([1, 3]),
)
def test_any_policy_replays_from_its_manifest_and_its_bytes(
    policy: ViewPolicy, sizes: np.ndarray, view: int, order: list[int], cuts: list[int], channels: int
) -> None:
    whole = _draw(policy, sizes, np.arange(N), view)
    # Any order in any batches draws the same outcomes.
    shuffled = np.array(order)
    pieces = [_draw(policy, sizes, rows, view) for rows in np.split(shuffled, cuts)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole[shuffled])
    # The manifest's text and the packed bytes are all a student needs.
    text = canonical_json(to_json(policy.spec()))
    student = ViewPolicy.from_spec(from_json(ViewSpec, json.loads(text)))
    stored = np.frombuffer(policy.pack(whole).tobytes(), dtype=np.uint8).reshape(N, policy.width)
    replayed = student.unpack(stored)
    for image, drawn, outcome in zip(_images(sizes, channels), whole, replayed, strict=True):
        first = policy.apply(image, drawn)
        assert first.dtype == torch.uint8
        assert min(first.shape[-2:]) >= 1
        assert torch.equal(student.apply(image, outcome), first)
    mix = mixing_of(student, replayed)
    if mix is not None:
        assert ((mix.weight >= 0) & (mix.weight <= 1)).all()
        assert ((mix.partner != np.arange(N)) | (mix.weight == 1)).all()


@settings(max_examples=60, deadline=None)
@given(policy=policies(), height=st.integers(2, 24), width=st.integers(2, 24))
def test_a_batch_has_the_pixels_of_its_images(policy: ViewPolicy, height: int, width: int) -> None:
    if policy.squashes:
        return
    sizes = np.tile(np.array([[height, width]]), (N, 1))
    images, outcomes = _images(sizes), _draw(policy, sizes, np.arange(N))
    batch = policy.apply_batch(torch.stack(images), outcomes)
    single = torch.stack([policy.apply(image, outcome) for image, outcome in zip(images, outcomes, strict=True)])
    assert torch.equal(batch, single)


@settings(max_examples=60, deadline=None)
@given(
    ops=st.lists(
        st.builds(PadCrop, padding=st.integers(1, 20)) | st.builds(HorizontalFlip, probability=FRACTION),
        min_size=1,
        max_size=4,
    ),
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    channels=st.sampled_from([1, 3, 4]),
    seed=st.integers(0, 2**63),
)
def test_every_kernel_of_crop_and_flip_makes_the_same_pixels(
    ops: list[Op], height: int, width: int, channels: int, seed: int
) -> None:
    """Image by image, the CPU's batch, and the batch of other devices, here run on the CPU: tolerance 0."""
    policy = ViewPolicy(name="drawn", ops=tuple(ops), seed=seed)
    assert policy.is_batched
    sizes = np.tile(np.array([[height, width]]), (N, 1))
    images, outcomes = _images(sizes, channels), _draw(policy, sizes, np.arange(N))
    single = torch.stack([policy.apply(image, outcome) for image, outcome in zip(images, outcomes, strict=True)])
    assert torch.equal(policy.apply_batch(torch.stack(images), outcomes), single)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pixels,
            "_crop_windows",
            lambda batch, top, left, padding: pixels._crop_windows_any_device(
                torch.nn.functional.pad(batch, [padding] * 4), top, left, *batch.shape[-2:]
            ),
        )
        assert torch.equal(policy.apply_batch(torch.stack(images), outcomes), single)
    if torch.cuda.is_available():
        assert torch.equal(policy.apply_batch(torch.stack(images).cuda(), outcomes).cpu(), single)


SIZES = np.stack([np.arange(40, 40 + N), np.arange(60, 60 - N, -1)], axis=1)
DIGEST_SCRIPT = """
import sys, torch
torch.set_num_threads(int(sys.argv[2]))
from tests.property.test_views_replay import preset_digest
for preset in sys.argv[1].split():
    print(preset_digest(preset))
"""


def preset_digest(preset: str) -> str:
    policy = ViewPolicy.from_preset(preset, seed=9)
    outcomes = _draw(policy, SIZES, np.arange(N), 5)
    digest = hashlib.sha256(policy.pack(outcomes).tobytes())
    views = [policy.apply(image, outcome) for image, outcome in zip(_images(SIZES), outcomes, strict=True)]
    mix = mixing_of(policy, outcomes)
    for row, view in enumerate(views):
        if mix is not None:
            alone = Mix(partner=mix.partner[[row]], weight=mix.weight[[row]], box=mix.box[[row]])
            view = mix_pixels(view, views[int(mix.partner[row])], alone)
        digest.update(view.numpy().tobytes())
    return digest.hexdigest()


def test_another_process_with_more_threads_makes_the_same_views() -> None:
    here = {preset: preset_digest(preset) for preset in PRESETS}
    done = subprocess.run(
        [sys.executable, "-c", DIGEST_SCRIPT, " ".join(PRESETS), "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == list(here.values())


class _Views(Dataset[torch.Tensor]):
    def __init__(self, policy: ViewPolicy) -> None:
        self._policy, self._images = policy, _images(SIZES)

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> torch.Tensor:
        outcome = _draw(self._policy, SIZES, np.array([row]), 5)[0]
        return self._policy.apply(self._images[row], outcome)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # 4 workers, fewer cores: only slower
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("preset", ["cifar", "imagenet-strong", "patient"])
def test_worker_processes_make_the_same_views(preset: str, workers: int) -> None:
    policy = ViewPolicy.from_preset(preset, seed=9)
    here = [_Views(policy)[row] for row in range(N)]
    there = list(DataLoader(_Views(policy), batch_size=None, num_workers=workers))
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
