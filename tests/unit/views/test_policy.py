"""A policy: its presets and forms, and that outcomes survive packing and make the same pixels one by one or batched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kdcache.canonical import canonical_json, from_json, to_json
from kdcache.errors import ConfigError, IncompatibleError, NotFoundError
from kdcache.specs import ViewSpec
from kdcache.views import pixels
from kdcache.views.ops import HorizontalFlip, Mixup, PadCrop, RandomResizedCrop
from kdcache.views.policy import PRESETS, ViewPolicy

N = 64


def _sizes(n: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.tile(np.array([[height, width]]), (n, 1))


def _images(n: int = N, channels: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_returns_from_its_spec(preset: str) -> None:
    policy = ViewPolicy.from_preset(preset, seed=11)
    spec = policy.spec()
    assert from_json(ViewSpec, to_json(spec)) == spec
    again = ViewPolicy.from_spec(from_json(ViewSpec, to_json(spec)))
    assert again == policy
    assert canonical_json(to_json(again.spec())) == canonical_json(to_json(spec))


@pytest.mark.parametrize("preset", PRESETS)
def test_packing_loses_nothing(preset: str) -> None:
    policy = ViewPolicy.from_preset(preset, seed=1)
    outcomes = policy.sample(np.arange(N), 3, sizes=_sizes(N, 375, 500), num_rows=N)
    packed = policy.pack(outcomes)
    assert packed.dtype == np.uint8
    assert packed.shape == (N, policy.width)
    np.testing.assert_array_equal(policy.unpack(packed), outcomes)
    np.testing.assert_array_equal(policy.unpack(np.asfortranarray(packed)[::2]), outcomes[::2])


def test_batched_crop_and_flip_make_the_pixels_of_single_images() -> None:
    policy = ViewPolicy.from_preset("cifar", seed=5)
    images, outcomes = _images(), policy.sample(np.arange(N), 0, sizes=_sizes(N), num_rows=N)
    before = images.clone()
    batch = policy.apply_batch(images, outcomes)
    single = torch.stack([policy.apply(image, outcome) for image, outcome in zip(images, outcomes, strict=True)])
    assert torch.equal(batch, single)
    assert torch.equal(images, before)


def test_the_kernel_for_other_devices_gives_the_pixels_of_the_cpu_kernel() -> None:
    policy = ViewPolicy.from_preset("cifar", seed=6)
    images, outcomes = _images(), policy.sample(np.arange(N), 0, sizes=_sizes(N), num_rows=N)
    padded = torch.nn.functional.pad(images, [4] * 4)
    top, left = outcomes["0.top"], outcomes["0.left"]
    other = pixels._crop_windows_any_device(padded, top, left, 32, 32)
    assert torch.equal(other, pixels._crop_windows(images, top, left, 4))


def test_none_changes_nothing_and_packs_to_no_bytes() -> None:
    policy = ViewPolicy.from_preset("none")
    outcomes = policy.sample(np.arange(N), 0, sizes=_sizes(N), num_rows=N)
    assert policy.pack(outcomes).shape == (N, 0)
    assert torch.equal(policy.apply_batch(_images(), outcomes), _images())
    assert not policy.is_random
    tokens = torch.arange(5)
    assert policy.apply(tokens, outcomes[0]) is tokens


def test_toml_gives_the_same_policy_as_python(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\n[[ops]]\nop = "random-resized-crop"\nscale = [0.25, 1]\nsize = 64\n'
        '[[ops]]\nop = "horizontal-flip"\n[[ops]]\nop = "mixup"\nalpha = 0.2\n'
    )
    ops = (RandomResizedCrop(scale=(0.25, 1.0), size=64), HorizontalFlip(), Mixup(alpha=0.2))
    assert ViewPolicy.from_toml(path, seed=3) == ViewPolicy(name="mine", ops=ops, seed=3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[ops]]\nop = 'pad-crip'", "pad-crop"),
        ("[[ops]]\nop = 'pad-crop'\npading = 4", "unknown key 'pading'"),
        ("[[ops]]\nop = 'pad-crop'\npadding = '4'", "expected int"),
        ("[[ops]]\nop = 'pad-crop'\npadding = 0", "1 to 127"),
        ("[[ops]]\nop = 'horizontal-flip'\nprobability = nan", "finite"),
        ("[[ops]]\npadding = 4", "unknown view op"),
        ("[[ops]]\nop = 'mixup'\n[[ops]]\nop = 'pad-crop'", "must be the last"),
        ("[[ops]]\nop = 'random-resized-crop'\nscale = [0.5]", "two rising numbers"),
        ("seed = 3", "unknown key 'seed'"),
        ("ops = 3", "expected name"),
        ("[[ops]", "not a TOML file"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        ViewPolicy.from_toml(path)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cifar'"):
        ViewPolicy.from_preset("cifer")
    with pytest.raises(NotFoundError, match="no file"):
        ViewPolicy.from_toml("nowhere.toml")
    with pytest.raises(ConfigError, match="unknown view op 'warp'"):
        ViewPolicy.from_spec(ViewSpec(policy="x", ops=({"op": "warp"},)))


def test_bytes_of_another_policy_are_refused() -> None:
    with pytest.raises(IncompatibleError, match=r"\(n, 3\)"):
        ViewPolicy.from_preset("cifar").unpack(np.zeros((5, 8), dtype=np.uint8))


def test_views_are_refused_on_what_is_no_image() -> None:
    policy = ViewPolicy.from_preset("cifar")
    outcomes = policy.sample(np.arange(2), 0, sizes=_sizes(2), num_rows=2)
    with pytest.raises(ConfigError, match="uint8"):
        policy.apply(torch.zeros(3, 32, 32), outcomes[0])
    with pytest.raises(ConfigError, match="uint8"):
        policy.apply_batch(torch.zeros(2, 32, 32, dtype=torch.uint8), outcomes)
    with pytest.raises(ConfigError, match="2 outcomes"):
        policy.apply_batch(_images(3), outcomes)


def test_free_boxes_make_no_batch_but_sized_ones_do() -> None:
    free = ViewPolicy.from_preset("imagenet")
    outcomes = free.sample(np.arange(4), 0, sizes=_sizes(4), num_rows=4)
    with pytest.raises(ConfigError, match="different sizes"):
        free.apply_batch(_images(4), outcomes)
    assert free.squashes
    sized = ViewPolicy(ops=(RandomResizedCrop(size=16), HorizontalFlip()))
    outcomes = sized.sample(np.arange(4), 0, sizes=_sizes(4), num_rows=4)
    batch = sized.apply_batch(_images(4), outcomes)
    assert batch.shape == (4, 3, 16, 16)
    assert torch.equal(batch[2], sized.apply(_images(4)[2], outcomes[2]))
    assert not sized.squashes


def test_a_crop_of_padding_p_never_leaves_the_padded_image() -> None:
    policy = ViewPolicy(ops=(PadCrop(padding=2),))
    outcomes = policy.sample(np.arange(5000), 0, sizes=_sizes(5000, 5, 9), num_rows=5000)
    assert set(outcomes["0.top"].tolist()) == set(outcomes["0.left"].tolist()) == set(range(5))
    image = _images(1, height=5, width=9)[0]
    padded = torch.nn.functional.pad(image, [2] * 4)
    for outcome in outcomes[:50]:
        top, left = int(outcome["0.top"]), int(outcome["0.left"])
        assert torch.equal(policy.apply(image, outcome), padded[:, top : top + 5, left : left + 9])
