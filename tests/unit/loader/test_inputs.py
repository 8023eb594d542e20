"""Inputs by row number: gathered or decoded, the same pixels; wrong rows are named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as image_functional

from kdcache.datasets.files import FileSource, open_image_folder
from kdcache.datasets.identity import row_digests
from kdcache.errors import ConfigError, IncompatibleError
from kdcache.loader import InputReader
from kdcache.models.preprocess import Preprocessing
from kdcache.specs import PreprocessingSpec
from kdcache.views.ops import ColourJitter, HorizontalFlip, PadCrop, RandomResizedCrop
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


@pytest.mark.parametrize("workers", [None, 0, 1])
def test_a_free_crop_box_is_resized_to_exactly_the_models_input(images: FileSource, workers: int | None) -> None:
    """Aspect ratio and all: "resize the shorter side, cut the centre" would cut the box a second time."""
    source = small_source(8) if workers is None else images
    policy = ViewPolicy(ops=(RandomResizedCrop(scale=(0.2, 0.6)), HorizontalFlip()), seed=3)
    sized = Preprocessing(PreprocessingSpec(resize=12, crop=9, mean=(0.5,), std=(0.2,)))
    reader = InputReader(source, sized, policy, workers=workers or 0)
    assert not reader.in_memory  # boxes of many sizes make no batch before the resize
    assert reader.views_on is None
    rows = np.arange(8)
    ((inputs, _),) = reader.batches([rows], view=2)
    raw = [torch.from_numpy(source.example(int(row)).copy()).permute(2, 0, 1) for row in rows]
    sizes = np.array([image.shape[-2:] for image in raw])
    outcomes = policy.sample(rows, 2, sizes=sizes, num_rows=8)
    boxes = [policy.apply(image, outcome) for image, outcome in zip(raw, outcomes, strict=True)]
    assert len({box.shape for box in boxes}) > 1
    expected = torch.stack([image_functional.resize(box, [9, 9], antialias=True) for box in boxes])
    assert torch.equal(inputs, sized.batch(expected))


def test_a_free_box_fills_the_image_again_where_the_model_takes_images_as_they_are() -> None:
    source = small_source(8)
    policy = ViewPolicy.from_preset("imagenet", seed=3)
    ((inputs, _),) = InputReader(source, PLAIN, policy).batches([np.arange(8)])
    assert inputs.shape == (8, 1, 6, 6)


def test_a_users_preprocessing_with_numbers_is_resized_by_its_numbers() -> None:
    """It is identified by its file, but a box must still come to its crop in one step."""
    sized = Preprocessing(PreprocessingSpec(resize=12, crop=9)).named("mine.py:factory")
    box = torch.arange(3 * 4 * 10, dtype=torch.uint8).reshape(3, 4, 10)
    assert torch.equal(sized.squash(box, (30, 40)), image_functional.resize(box, [9, 9], antialias=True))
    called = Preprocessing(PreprocessingSpec(code="mine.py:factory"), lambda image: image[:, :2, :2] / 255)
    assert called.squash(box, (30, 40)).shape == (3, 2, 2)


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, torch.dtype]]:
    """Device and type of every batch of images that `apply_batch` was given."""
    seen: list[tuple[str, torch.dtype]] = []
    true_apply = ViewPolicy.apply_batch

    def apply_batch(self: ViewPolicy, images: torch.Tensor, outcomes: np.ndarray) -> torch.Tensor:
        seen.append((images.device.type, images.dtype))
        return true_apply(self, images, outcomes)

    monkeypatch.setattr(ViewPolicy, "apply_batch", apply_batch)
    return seen


@pytest.mark.parametrize("fits", [True, False])
def test_crop_and_flip_run_on_the_device_as_one_batch_of_bytes(
    devices: list[tuple[str, torch.dtype]], monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    """`meta` stands for an accelerator: it has a device's name and no pixels, so only the way is tested."""
    if not fits:
        monkeypatch.setattr("kdcache.loader.inputs.RESIDENT_BYTES", 0)
    reader = InputReader(small_source(10), PLAIN, ViewPolicy.from_preset("cifar"), device="meta")
    assert reader.views_on == torch.device("meta")
    ((inputs, _),) = reader.batches(BATCHES[:1])
    assert devices == [("meta", torch.uint8)]
    assert inputs.device.type == "meta"
    assert inputs.shape == (3, 1, 6, 6)


def test_ops_without_a_batched_kernel_stay_on_the_cpu(devices: list[tuple[str, torch.dtype]]) -> None:
    policy = ViewPolicy(ops=(PadCrop(), ColourJitter(brightness=0.4)), seed=1)
    reader = InputReader(small_source(10), PLAIN, policy, device="meta")
    assert reader.views_on is None
    ((inputs, _),) = reader.batches(BATCHES[:1])
    assert devices == [("cpu", torch.uint8)]
    assert inputs.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_views_made_on_a_gpu_are_the_cpus_bit_for_bit() -> None:
    source, policy = small_source(200), ViewPolicy.from_preset("cifar", seed=4)
    raw = Preprocessing(PreprocessingSpec())
    here, there = (InputReader(source, raw, policy, device=device) for device in ("cpu", "cuda"))
    rows = np.arange(200)
    for view in range(3):
        ((one, _),), ((other, _),) = here.batches([rows], view=view), there.batches([rows], view=view)
        assert torch.equal((one * 255).round(), (other * 255).round().cpu())


@pytest.mark.parametrize("policy", ["none", "cifar", "patient"])
@pytest.mark.parametrize("kind", ["files", "array"])
def test_digests_come_with_the_pixels_and_no_file_is_read_twice(
    images: FileSource, monkeypatch: pytest.MonkeyPatch, kind: str, policy: str
) -> None:
    """What a dump stores of view 0: the digests of `row_digests`, from the one reading that gave the pixels."""
    source = images if kind == "files" else small_source(10)
    views = None if policy == "none" else ViewPolicy.named(policy, seed=5)
    expected = [row_digests(source, rows) for rows in BATCHES]
    reads: list[int] = []
    raw = FileSource.raw

    def counted(self: FileSource, row: int) -> bytes:
        reads.append(row)
        return raw(self, row)

    monkeypatch.setattr(FileSource, "raw", counted)
    reader = InputReader(source, SIZED if kind == "files" else PLAIN, views, take_digests=True)
    for (_, rows), digests in zip(reader.batches(BATCHES), expected, strict=True):
        columns = reader.view_columns(rows, 0)
        assert np.array_equal(columns["row_digest"], digests)
        assert ("view_params" in columns) == (policy != "none")
    if kind == "files" and policy != "patient":  # mixing reads partners, too
        assert reads == [3, 0, 3, 7]
    reads.clear()
    ((_, rows),) = reader.batches(BATCHES[1:], view=1)
    assert "row_digest" not in reader.view_columns(rows, 1)


def test_digests_are_taken_where_files_are_decoded(images: FileSource, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = row_digests(images, BATCHES[0])
    reader = InputReader(images, SIZED, workers=1, take_digests=True)
    ((_, rows),) = reader.batches(BATCHES[:1])
    monkeypatch.setattr(FileSource, "raw", None)  # this process reads no file
    assert np.array_equal(reader.view_columns(rows, 0)["row_digest"], expected)
