"""The embedded sample: regenerable bit for bit, disjoint digits, pinned pairs, a teacher as good as it says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors
import torch

from kdcache.datasets.cards import load_card, open_dataset, shipped_folder
from kdcache.datasets.digit_pairs import SPLITS
from kdcache.models.registry import build_model
from kdcache.models.weights import load_weights

DATA = Path(__file__).resolve().parents[3] / "data"


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DATA / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _images(split: str) -> tuple[np.ndarray, np.ndarray]:
    source = open_dataset("digit-pairs", split=split)
    return np.stack([source.example(row) for row in range(len(source))]), source.labels


def test_the_digits_regenerate_bit_for_bit() -> None:
    assert _script("prepare_sample").sample_bytes() == (shipped_folder("sample") / "digits.npz").read_bytes()


def test_every_class_has_the_same_number_of_pairs() -> None:
    for split, chosen in SPLITS.items():
        images, labels = _images(split)
        assert images.shape == (chosen.pairs, 8, 16, 1)
        assert images.max() == 240
        assert (np.bincount(labels, minlength=100) == chosen.pairs // 100).all()


def test_no_digit_is_in_two_splits() -> None:
    digits = {}
    for split in SPLITS:
        images, _ = _images(split)
        digits[split] = {half.tobytes() for pair in images for half in (pair[:, :8], pair[:, 8:])}
    for first in SPLITS:
        for second in SPLITS:
            assert first == second or not digits[first] & digits[second]


def test_the_label_is_the_digits() -> None:
    with np.load(shipped_folder("sample") / "digits.npz") as content:
        known = {
            image.tobytes(): int(digit) for image, digit in zip(content["images"] * 15, content["labels"], strict=True)
        }
    images, labels = _images("test")
    for image, label in zip(images[::37], labels[::37], strict=True):
        left, right = np.ascontiguousarray(image[:, :8, 0]), np.ascontiguousarray(image[:, 8:, 0])
        assert 10 * known[left.tobytes()] + known[right.tobytes()] == label


def test_the_pairs_are_the_pinned_ones() -> None:
    digests = load_card("digit-pairs").digests
    assert set(digests) == set(SPLITS)  # open_dataset compares them


def test_the_teacher_is_as_accurate_as_its_file_says() -> None:
    card = load_card("digit-pairs")
    built = build_model(
        card.defaults["teacher"], num_classes=100, input_shape=card.image_shape, data=card.preprocessing
    )
    info = load_weights(built.module, card.defaults["weights"])
    assert Path(card.defaults["weights"]).stat().st_size < 1_000_000
    built.module.eval()
    for split in ("train", "val", "test"):
        images, labels = _images(split)
        with torch.no_grad():
            logits = built.module(built.preprocessing.batch(torch.from_numpy(images).permute(0, 3, 1, 2)))
        accuracy = float((logits.argmax(1).numpy() == labels).mean())
        assert abs(accuracy - info.training["accuracy"][split]) < 0.002  # rounding of another CPU
        assert accuracy > 0.96


def test_the_teachers_recipe_is_the_one_in_its_file() -> None:
    with safetensors.safe_open(load_card("digit-pairs").defaults["weights"], framework="np") as handle:
        training = json.loads(handle.metadata()["training"])
    recipe = _script("train_sample_teacher").RECIPE
    assert {key: training[key] for key in recipe} == recipe


@pytest.mark.slow
def test_the_recipe_gives_the_teacher_again() -> None:
    script = _script("train_sample_teacher")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _, provenance = script.train(script.RECIPE)
    finally:
        torch.set_num_threads(threads)
    with safetensors.safe_open(load_card("digit-pairs").defaults["weights"], framework="np") as handle:
        saved = json.loads(handle.metadata()["training"])
    for split, accuracy in saved["accuracy"].items():
        assert abs(provenance["accuracy"][split] - accuracy) < 0.01
