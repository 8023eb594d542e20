"""Cards are strict, ship with kdcache, and open what they describe or say how to obtain it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kdcache.datasets.cards import card_names, load_card, open_dataset, shipped_folder
from kdcache.datasets.identity import content_digest
from kdcache.datasets.source import DataSource, input_shape
from kdcache.errors import ConfigError, IncompatibleError, NotFoundError
from kdcache.models.registry import build_model

MINIMAL = """
name = "mine"
title = "My data"
source = "npz"
licence = "mine"
obtain = "make it"
path = "mine.npz"
[splits]
train = "a"
test = "b"
"""


def _card(folder: Path, extra: str = "", text: str = MINIMAL) -> str:
    path = folder / "mine.toml"
    path.write_text(extra + text)
    return str(path)


@pytest.mark.parametrize("name", card_names())
def test_every_shipped_card_is_valid_and_its_models_exist(name: str) -> None:
    card = load_card(name)
    assert card.name == name
    for key in ("teacher", "student"):
        shape = () if card.source in ("text", "tokens") else card.image_shape or (3, 32, 32)
        with torch.device("meta"):
            build_model(card.defaults[key], num_classes=card.num_classes or 5, input_shape=shape, data=None)


def test_the_promised_cards_ship() -> None:
    promised = {
        "digit-pairs",
        "cifar10",
        "cifar100",
        "fashion-mnist",
        "imagenet",
        "imagefolder",
        "npz",
        "ptb",
        "tiny-imagenet",
        "tokens",
    }
    assert promised <= set(card_names())


def test_opening_data_needs_no_torch() -> None:
    code = (
        "import sys; from kdcache.datasets.cards import open_dataset; open_dataset('digit-pairs', split='test');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_card_and_split_name_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="'cifar-100' is unknown") as caught:
        load_card("cifar-100")
    assert "cifar100" in caught.value.hint
    with pytest.raises(NotFoundError, match="no split 'tset'") as caught:
        open_dataset("digit-pairs", split="tset")
    assert "test" in caught.value.hint
    with pytest.raises(NotFoundError, match="no such file"):
        load_card("nowhere.toml")


@pytest.mark.parametrize(
    ("extra", "message", "hint"),
    [
        ("num_clases = 3\n", "unknown key 'num_clases'", "num_classes"),
        ("num_classes = '3'\n", "num_classes: expected a whole number", ""),
        ("num_classes = true\n", "num_classes: expected a whole number", ""),
        ("mean = 0.5\n", "mean: expected a list of numbers", ""),
        ("mean = [0.5]\n", "1 means but 0 standard deviations", ""),
        ("mean = [0.5]\nstd = [0.0]\n", "must be positive", ""),
        ("image_shape = [3, 4, 4]\nmean = [0.5, 0.5]\nstd = [1, 1]\n", "2 means for 3 channels", ""),
        ("[defaults]\nlearning_rate = 1\n[dummy]\n", "unknown key 'dummy'", ""),
        ("x = [\n", "not TOML", ""),
    ],
)
def test_a_wrong_card_says_what_is_wrong(tmp_path: Path, extra: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_card(_card(tmp_path, extra))
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ("epoch = 3", "unknown key 'epoch'"),
        ("epochs = 0", "epochs: expected a whole number of at least 1"),
        ("lr = 'high'", "lr: expected a number"),
        ("student = 3", "student: expected text"),
        ("methods.kd = 3", r"methods.kd: expected a table"),
        ("methods.kd.lrr = 3", r"methods.kd: unknown key 'lrr'"),
        ("methods.kd.options = 3", r"methods.kd.options: expected a table"),
    ],
)
def test_wrong_defaults_are_refused(tmp_path: Path, defaults: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_card(_card(tmp_path, text=MINIMAL + "[defaults]\n" + defaults))


@pytest.mark.parametrize("missing", ["name", "source", "licence", "obtain"])
def test_a_missing_key_is_named(tmp_path: Path, missing: str) -> None:
    text = "\n".join(line for line in MINIMAL.splitlines() if not line.startswith(missing))
    with pytest.raises(ConfigError, match=missing):
        load_card(_card(tmp_path, text=text))


def test_unknown_reader_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="source 'imagefolder' is unknown") as caught:
        load_card(_card(tmp_path, text=MINIMAL.replace('"npz"', '"imagefolder"')))
    assert "image-folder" in caught.value.hint


def test_default_weights_are_relative_to_the_card(tmp_path: Path) -> None:
    card = load_card(_card(tmp_path, text=MINIMAL + '[defaults]\nweights = "sub/w.safetensors"'))
    assert card.defaults["weights"] == str(tmp_path / "sub" / "w.safetensors")
    assert Path(load_card("digit-pairs").defaults["weights"]) == shipped_folder("sample") / "teacher.safetensors"


def _save(folder: Path, **arrays: np.ndarray) -> None:
    np.savez(folder / "mine.npz", **arrays)


def test_a_card_of_ones_own_opens_an_npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    _save(tmp_path, a_images=images, a_labels=np.array([0, 2]), names=np.array(["x", "y", "z"]))
    card = _card(tmp_path)
    for source in _every_way_to_name_the_root(card, tmp_path, monkeypatch):
        assert (source.name, source.split, source.num_classes, source.class_names) == (
            "mine",
            "train",
            3,
            ("x", "y", "z"),
        )
        assert input_shape(source) == (1, 4, 4)
        assert np.array_equal(source.example(1)[..., 0], images[1])


def _every_way_to_name_the_root(card: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[DataSource]:
    sources = [open_dataset(card, split="train", root=root) for root in (folder, folder / "mine.npz")]
    monkeypatch.setenv("KDCACHE_DATA_ROOT", str(folder))
    sources.append(open_dataset(card, split="train"))
    monkeypatch.delenv("KDCACHE_DATA_ROOT")
    monkeypatch.chdir(folder)
    (folder / "data").mkdir()
    (folder / "data" / "cache").symlink_to(folder)
    return [*sources, open_dataset(card, split="train")]


def test_missing_data_says_where_it_was_looked_for_and_how_to_obtain_it(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        open_dataset("cifar100", split="train", root=tmp_path)
    assert str(tmp_path / "cifar-100-python") in caught.value.message
    assert "--data-root" in caught.value.message
    assert f"prepare_torchvision.py cifar100 --data-root {tmp_path}" in caught.value.hint


def test_wrong_number_of_classes_and_wrong_content_are_refused(tmp_path: Path) -> None:
    _save(tmp_path, a_images=np.zeros((2, 4, 4), np.uint8), a_labels=np.array([0, 2]), names=np.array(["x", "y", "z"]))
    card = _card(tmp_path, text=MINIMAL + f'[digests]\ntrain = "{"0" * 64}"')
    with pytest.raises(IncompatibleError, match="not the published examples"):
        open_dataset(card, split="train", root=tmp_path)
    card = _card(tmp_path, extra="num_classes = 4\n")
    source = open_dataset(card, split="train", root=tmp_path)
    assert source.num_classes == 4


def test_pinned_digest_of_ones_own_card_is_accepted_when_right(tmp_path: Path) -> None:
    _save(tmp_path, a_images=np.zeros((2, 4, 4), np.uint8), a_labels=np.array([0, 2]))
    digest = content_digest(open_dataset(_card(tmp_path), split="train", root=tmp_path))
    card = _card(tmp_path, text=MINIMAL + f'[digests]\ntrain = "{digest}"')
    assert len(open_dataset(card, split="train", root=tmp_path)) == 2
