"""Inputs by row number: gathered or decoded, the same pixels; wrong rows are named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdcache.datasets.files import FileSource, open_image_folder
from kdcache.datasets.identity import row_digests
from kdcache.errors import ConfigError, IncompatibleError
from kdcache.loader import InputReader
from kdcache.models.preprocess import Preprocessing
from kdcache.specs import PreprocessingSpec
from kdcache.views.policy import ViewPolicy
from tests.small_store import small_source

PLAIN = Preprocessing(PreprocessingSpec(mean=(0.5,), std=(0.25,)))
SIZED = Preprocessing(PreprocessingSpec(resize=8, crop=8, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)))
BATCHES = [np.array([3, 0, 3], dtype=np.int64), np.array([7], dtype=np.int64)]


@pytest.fixture
def images(tmp_path: Path) -> FileSource:
    rng = np.random.default_rng(0)
    for number in range(8):
        folder = tmp_path / f"class-{number % 2}"
        folder.mkdir(exist_ok=True)
        shape = (10 + number, 12, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{number}.png")
    return open_image_folder(tmp_path, name="files", split="train")


def test_arrays_are_gathered_and_normalised_as_a_batch() -> None:
    source = small_source(10)
    reader = InputReader(source, PLAIN)
    assert reader.in_memory
    read = list(reader.batches(BATCHES))
    expected = torch.from_numpy(source.examples[[3, 0, 3]]).permute(0, 3, 1, 2)
    torch.testing.assert_close(read[0][0], (expected / 255 - 0.5) / 0.25)
    assert [rows.tolist() for _, rows in read] == [[3, 0, 3], [7]]


def test_numbers_that_are_no_images_keep_their_shape() -> None:
    source = small_source(10)
    source.examples = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)
    ((inputs, _),) = InputReader(source, Preprocessing(PreprocessingSpec())).batches(BATCHES[:1])
    torch.testing.assert_close(inputs, torch.from_numpy(source.examples[[3, 0, 3]]))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_files_give_the_same_inputs_with_any_number_of_workers(images: FileSource, workers: int) -> None:
    reader = InputReader(images, SIZED, workers=workers)
    assert not reader.in_memory
    expected = [
        torch.stack(
            [SIZED.per_example(torch.from_numpy(images.example(int(row)).copy()).permute(2, 0, 1)) for row in rows]
        )
        for rows in BATCHES
    ]
    for _ in range(2):  # a second epoch reuses the workers
        for (inputs, rows), pixels, asked in zip(reader.batches(BATCHES), expected, BATCHES, strict=True):
            torch.testing.assert_close(inputs, SIZED.batch(pixels))
            assert rows.tolist() == asked.tolist()


def test_reading_leaves_the_global_generator_alone(images: FileSource) -> None:
    before = torch.random.get_rng_state()
    list(InputReader(images, SIZED, workers=1).batches(BATCHES))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_row_that_is_another_example_is_named(images: FileSource, workers: int) -> None:
    digests = row_digests(images, range(8))
    reader = InputReader(images, SIZED, workers=workers)
    assert len(list(reader.batches(BATCHES, digests=digests))) == 2
    digests[7] ^= 1
    with pytest.raises(IncompatibleError, match="row 7"):
        list(reader.batches(BATCHES, digests=digests))


def test_a_row_of_an_array_that_is_another_example_is_named() -> None:
    source = small_source(10)
    digests = row_digests(source, range(10))
    source.examples = source.examples.copy()
    source.examples[7, 0, 0, 0] ^= 1
    with pytest.raises(IncompatibleError, match="row 7"):
        list(InputReader(source, PLAIN).batches(BATCHES, digests=digests))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_workers_error_arrives_whole(images: FileSource, workers: int) -> None:
    unsized = Preprocessing(PreprocessingSpec())
    with pytest.raises(ConfigError, match="a batch needs one size") as caught:
        list(InputReader(images, unsized, workers=workers).batches(BATCHES))
    assert "resizes" in caught.value.hint
    assert "Traceback" not in caught.value.message


def test_an_augmented_array_shows_the_policys_view_and_says_which() -> None:
    source = small_source(10)
    policy = ViewPolicy.from_preset("cifar", seed=5)
    reader = InputReader(source, PLAIN, policy)
    rows = np.arange(10)
    images = torch.from_numpy(source.examples).permute(0, 3, 1, 2)
    for view in (0, 3):
        ((inputs, _),) = reader.batches([rows], view=view)
        outcomes = policy.sample(rows, view, sizes=np.full((10, 2), 6), num_rows=10)
        torch.testing.assert_close(inputs, PLAIN.batch(policy.apply_batch(images, outcomes)))
        assert np.array_equal(reader.view_columns(rows, view)["view_params"], policy.pack(outcomes))
    assert InputReader(source, PLAIN).view_columns(rows, 0) == {}


def _views(reader: InputReader, view: int) -> Iterator[torch.Tensor]:
    for inputs, _ in reader.batches(BATCHES, view=view):
        yield inputs


def test_augmented_files_are_the_same_with_and_without_workers(images: FileSource) -> None:
    policy = ViewPolicy.from_preset("imagenet", seed=1)
    here, there = (InputReader(images, SIZED, policy, workers=workers) for workers in (0, 2))
    for view in (0, 1):
        for one, other in zip(_views(here, view), _views(there, view), strict=True):
            assert torch.equal(one, other)
    first, second = (torch.cat(list(_views(here, view))) for view in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("workers", [None, 0, 1])
def test_recorded_outcomes_are_replayed_not_drawn_again(images: FileSource, workers: int | None) -> None:
    """Another seed stands for a later version that would draw differently: the record decides."""
    source = small_source(8) if workers is None else images
    preprocessing = PLAIN if workers is None else SIZED
    policies = [ViewPolicy.from_preset("cifar", seed=seed) for seed in (1, 2)]
    recorded = {}
    drawn = InputReader(source, preprocessing, policies[0], workers=workers or 0)
    seen = []
    for inputs, rows in drawn.batches(BATCHES, view=4):
        seen.append(inputs)
        recorded.update(zip(rows.tolist(), drawn.view_columns(rows, 4)["view_params"], strict=True))
    replayed = InputReader(
        source,
        preprocessing,
        policies[1],
        workers=workers or 0,
        stored_params=lambda rows, view: np.stack([recorded[int(row)] for row in rows]),
    )
    for inputs, expected in zip((item for item, _ in replayed.batches(BATCHES, view=4)), seen, strict=True):
        assert torch.equal(inputs, expected)


def test_a_policy_that_mixes_examples_is_refused() -> None:
    with pytest.raises(ConfigError, match="mixes"):
        InputReader(small_source(8), PLAIN, ViewPolicy.from_preset("patient"))
