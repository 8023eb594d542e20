"""What reaches a model: sizes per example, numbers per batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from kdcache.errors import ConfigError
from kdcache.models.preprocess import Preprocessing
from kdcache.specs import PreprocessingSpec


def _image(channels: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 100 + width)
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=generator)


@given(height=st.integers(8, 40), width=st.integers(8, 40))
def test_resize_brings_the_shorter_side_and_crop_the_square(height: int, width: int) -> None:
    image = _image(3, height, width)
    resized = Preprocessing(PreprocessingSpec(resize=12)).per_example(image)
    assert min(resized.shape[1:]) == 12
    cropped = Preprocessing(PreprocessingSpec(resize=12, crop=10)).per_example(image)
    assert cropped.shape == (3, 10, 10)
    assert cropped.dtype == torch.uint8


def test_two_steps_equal_torchvisions_evaluation_transform() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    reference = v2.Compose(
        [v2.Resize(20), v2.CenterCrop(16), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    )
    ours = Preprocessing(PreprocessingSpec(resize=20, crop=16, mean=mean, std=std))
    image = _image(3, 30, 45)
    torch.testing.assert_close(ours.batch(ours.per_example(image)[None])[0], reference(image))


def test_only_images_are_scaled() -> None:
    ours = Preprocessing(PreprocessingSpec(resize=4, mean=(0.5,), std=(0.5,)))
    features, tokens = torch.randn(2, 5, dtype=torch.float64), torch.tensor([[3, 4]], dtype=torch.int32)
    assert ours.per_example(features[0]) is not None
    torch.testing.assert_close(ours.batch(features), features.float())
    assert ours.batch(tokens).dtype == torch.int64
    assert ours.batch(tokens).tolist() == [[3, 4]]


def test_the_batch_is_not_changed_in_place() -> None:
    batch = _image(3, 4, 4)[None]
    before = batch.clone()
    Preprocessing(PreprocessingSpec(mean=(0.5,), std=(0.5,))).batch(batch)
    assert torch.equal(batch, before)


def test_channels_that_do_not_match_the_mean_are_refused() -> None:
    ours = Preprocessing(PreprocessingSpec(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0)))
    with pytest.raises(ConfigError, match="3 means, the images have 1 channels"):
        ours.batch(_image(1, 4, 4)[None])


def test_spatial_tells_whether_per_example_does_anything() -> None:
    image = _image(3, 6, 6)
    plain = Preprocessing(PreprocessingSpec(mean=(0.5,), std=(0.5,)))
    assert not plain.spatial
    assert plain.per_example(image) is image
    assert Preprocessing(PreprocessingSpec(crop=4)).spatial
    assert plain.output_shape((3, 6, 6)) == (3, 6, 6)
    assert Preprocessing(PreprocessingSpec(crop=4)).output_shape((3, 6, 9)) == (3, 4, 4)
    assert Preprocessing(PreprocessingSpec(crop=4)).output_shape((500,)) == (500,)


def test_a_users_callable_must_return_numbers() -> None:
    wrong = Preprocessing(PreprocessingSpec(code="mine.py:f"), lambda image: image)
    with pytest.raises(ConfigError, match=r"'mine.py:f': expected a floating-point tensor .* found torch.uint8"):
        wrong.per_example(_image(3, 4, 4))


@pytest.mark.parametrize("spec", [PreprocessingSpec(interpolation="lanczos"), PreprocessingSpec(crop=0)])
def test_impossible_settings_are_refused(spec: PreprocessingSpec) -> None:
    with pytest.raises(ConfigError, match="preprocessing"):
        Preprocessing(spec)
