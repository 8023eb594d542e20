"""Canaries: equal pixels pass, rounding is warned about, anything more is refused with its size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from kdcache.canonical import canonical_json, from_json, to_json
from kdcache.errors import ConfigError, CorruptStoreError, IncompatibleError
from kdcache.specs import ViewSpec
from kdcache.views.canary import check_canaries, check_policy, check_sampling, make_canaries, view_libraries
from kdcache.views.ops import HorizontalFlip, PadCrop, RandomResizedCrop, UserTransform
from kdcache.views.policy import PRESETS, ViewPolicy

N = 100


def _image(row: int, height: int = 40, width: int = 48) -> torch.Tensor:
    """A smooth image of its own for each row, as photographs are smooth."""
    generator = torch.Generator().manual_seed(row)
    coarse = torch.randint(30, 220, (1, 3, 6, 6), generator=generator).float()
    return (
        torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0].clamp(0, 255).to(torch.uint8)
    )


def _spec(policy: ViewPolicy, **options: Any) -> ViewSpec:
    canaries = make_canaries(policy, _image, N, **options)
    spec = policy.spec(libraries=view_libraries(options.get("device")), canaries=canaries)
    return from_json(ViewSpec, to_json(spec))  # as a manifest gives it back


@pytest.mark.parametrize("preset", PRESETS)
def test_the_same_stack_passes_without_a_word(preset: str) -> None:
    policy = ViewPolicy.from_preset(preset, seed=2)
    spec = _spec(policy, num_views=3)
    report = check_canaries(ViewPolicy.from_spec(spec), spec, _image, N)
    assert report.compared == (0 if preset == "none" else 8)
    assert not report.warning
    check_sampling(policy, spec, N)
    check_policy(policy, spec)
    assert len(canonical_json(to_json(spec))) < 16_000


def test_canaries_spread_over_rows_and_views() -> None:
    spec = _spec(ViewPolicy.from_preset("cifar"), num_views=4)
    assert [canary["row"] for canary in spec.canaries][:: len(spec.canaries) - 1] == [0, N - 1]
    assert {canary["view"] for canary in spec.canaries} == {0, 1, 2, 3}
    few = make_canaries(ViewPolicy.from_preset("cifar"), _image, 3)
    assert [canary["row"] for canary in few] == [0, 1, 2]


def test_the_batched_path_makes_the_same_canaries() -> None:
    policy = ViewPolicy.from_preset("cifar", seed=2)
    assert _spec(policy, device="cpu").canaries == _spec(policy).canaries
    assert _spec(policy, device="cpu").libraries["path"] == "batch on cpu"


@pytest.mark.parametrize("preset", ["cifar", "imagenet", "imagenet-strong", "patient"])
def test_rounding_is_warned_about(preset: str) -> None:
    policy = ViewPolicy.from_preset(preset, seed=2)
    spec = _spec(policy)

    def rounded(row: int) -> torch.Tensor:
        # One value in four one level off: twice what uint8 and float resizing differ by (0.1 to 0.3 on average).
        noise = torch.randint(-4, 5, _image(row).shape, generator=torch.Generator().manual_seed(row + 1000))
        return (_image(row) + noise // 4 + (noise < 0)).clamp(0, 255).to(torch.uint8)

    report = check_canaries(policy, spec, rounded, N)
    assert len(report.rounding) >= 6
    assert not report.drifted
    assert "rounding" in report.warning


@pytest.mark.parametrize("change", ["shift", "flip", "brighter", "other row", "channels", "size"])
def test_drift_is_refused_with_its_size(change: str) -> None:
    policy = ViewPolicy(ops=(RandomResizedCrop(size=24), HorizontalFlip()), seed=2)
    spec = _spec(policy)

    def drifted(row: int) -> torch.Tensor:
        image = _image(row)
        return {
            "shift": image.roll(2, dims=-1),
            "flip": image.flip(-1),
            "brighter": (image.int() + 12).clamp(0, 255).to(torch.uint8),
            "other row": _image(row + 1),
            "channels": image.flip(0),
            "size": _image(row, 50, 60),
        }[change]

    with pytest.raises(IncompatibleError, match=r"of 255 on average.*0\.top=") as caught:
        check_canaries(policy, spec, drifted, N)
    assert "--allow-view-drift" in caught.value.hint
    report = check_canaries(policy, spec, drifted, N, allow_drift=True)
    assert report.drifted
    assert "drifted" in report.warning


def test_another_library_version_is_named_when_pixels_drift() -> None:
    policy = ViewPolicy.from_preset("cifar")
    spec = _spec(policy)
    spec = replace(spec, libraries={**spec.libraries, "torchvision": "0.1"})
    with pytest.raises(IncompatibleError, match=r"torchvision 0\.1 then"):
        check_canaries(policy, spec, lambda row: _image(row).flip(-1), N)


def test_a_changed_policy_or_seed_is_refused_with_a_readable_difference() -> None:
    spec = _spec(ViewPolicy.from_preset("cifar", seed=2))
    with pytest.raises(IncompatibleError, match="seed: the store has 2, asked for 3"):
        check_policy(ViewPolicy.from_preset("cifar", seed=3), spec)
    with pytest.raises(IncompatibleError, match=r'op 0: .*"padding":4.*asked for .*"padding":2'):
        check_policy(ViewPolicy(ops=(PadCrop(padding=2), HorizontalFlip()), seed=2), spec)
    with pytest.raises(IncompatibleError, match=r"op 1: .* asked for nothing"):
        check_policy(ViewPolicy(ops=(PadCrop(),), seed=2), spec)
    check_policy(ViewPolicy(name="another name", ops=PRESETS["cifar"], seed=2), spec)


def test_other_draws_are_refused_before_a_store_grows() -> None:
    spec = _spec(ViewPolicy.from_preset("cifar", seed=2))
    with pytest.raises(IncompatibleError, match=r"the store has 0\.top=\d"):
        check_sampling(ViewPolicy.from_preset("cifar", seed=3), spec, N)


def test_a_transform_with_randomness_of_its_own_gets_no_canaries() -> None:
    calls = [0]

    def unstable(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        calls[0] += 1
        return image + calls[0]

    policy = ViewPolicy(ops=(UserTransform(code="mine.py:make", digest="0" * 64),), user_code=unstable)
    with pytest.raises(ConfigError, match="came out differently"):
        make_canaries(policy, _image, N)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"outcome": "zz"}, "not hexadecimal"),
        ({"outcome": "00"}, "expected 3 bytes"),
        ({"sample": "!"}, "not base64"),
        ({"sample": "AAAA"}, "expected"),
        ({"shape": [3, 32]}, "make no sense"),
        ({"row": -1}, "make no sense"),
        ({"row": N}, "row"),
        ({"extra": 1}, "unknown key"),
    ],
)
def test_malformed_canaries_are_corrupt(change: Mapping[str, Any], says: str) -> None:
    policy = ViewPolicy.from_preset("cifar")
    spec = _spec(policy)
    broken = replace(spec, canaries=({**spec.canaries[0], **change},))
    with pytest.raises(CorruptStoreError, match=says):
        check_canaries(policy, broken, lambda row: _image(row).flip(-1), N)
