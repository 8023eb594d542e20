"""A user's own data: full identity for a DataSource, weak for an already transformed data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdcache.datasets.cards import open_dataset
from kdcache.datasets.identity import dataset_spec, row_digests
from kdcache.errors import ConfigError, IncompatibleError, NotFoundError

CODE = """
import numpy as np, torch
from PIL import Image
from kdcache.datasets.source import ArraySource

def source(split, root):
    return ArraySource(np.zeros((4, 2), np.float32), np.arange(4), name=str(root), split=split, num_classes=4)

class Pairs(torch.utils.data.Dataset):
    def __init__(self, items): self.items = items
    def __len__(self): return len(self.items)
    def __getitem__(self, row): return self.items[row]

def tensors(split, root):
    data = Pairs([(torch.full((3, 4, 4), float(i)), i % 3) for i in range(7)])
    data.targets = [i % 3 for i in range(7)]
    data.classes = ["a", "b", "c", "d"]
    return data

def reordered(split, root):
    data = Pairs([(torch.full((3, 4, 4), float(i)), [2, 0, 1][i % 3]) for i in range(7)])
    data.targets, data.target_transform = [i % 3 for i in range(7)], lambda label: [2, 0, 1][label]
    return data

def coarser(split, root):
    data = Pairs([(torch.full((3, 4, 4), float(i)), i % 3 // 2) for i in range(7)])
    data.labels = [i % 3 for i in range(7)]
    return data

def images(split, root):
    return Pairs([(Image.fromarray(np.full((5, 6), i, np.uint8)), torch.tensor(i % 2)) for i in range(4)])

def nothing(split, root):
    return 3

def single(split, root):
    return [1, 2, 3]
"""


@pytest.fixture
def code(tmp_path: Path) -> str:
    path = tmp_path / "mydata.py"
    path.write_text(CODE)
    return str(path)


def test_a_data_source_is_used_as_it_is(code: str, tmp_path: Path) -> None:
    source = open_dataset(f"{code}:source", split="train", root=tmp_path)
    assert (source.name, source.split, source.identity) == (str(tmp_path), "train", "full")


@pytest.mark.parametrize(
    ("factory", "labels"), [("reordered", [2, 0, 1, 2, 0, 1, 2]), ("coarser", [0, 0, 1] * 2 + [0])]
)
def test_the_labels_are_those_of_the_items_and_not_a_list_of_before_they_were_changed(
    code: str, factory: str, labels: list[int]
) -> None:
    assert open_dataset(f"{code}:{factory}", split="train").labels.tolist() == labels


def test_a_map_style_data_set_has_weak_identity(code: str) -> None:
    source = open_dataset(f"{code}:tensors", split="val")
    spec = dataset_spec(source, card="c")
    assert (spec.identity, spec.num_rows, spec.num_classes, spec.name) == ("weak", 7, 4, "mydata")
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert source.example(2).dtype == np.float32
    assert row_digests(source, [0, 1]).tolist() == [0, 0]


def test_pil_images_become_rgb_and_labels_are_collected(code: str) -> None:
    source = open_dataset(f"{code}:images", split="train")
    assert source.example(3).shape == (5, 6, 3)
    assert source.labels.tolist() == [0, 1, 0, 1]
    assert source.num_classes == 2


@pytest.mark.parametrize("function", ["nothing", "single"])
def test_other_results_are_refused(code: str, function: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        open_dataset(f"{code}:{function}", split="train")


def test_a_missing_file_or_function_is_named(code: str) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        open_dataset("nowhere.py:f", split="train")
    with pytest.raises(ConfigError, match="no function 'tensor'") as caught:
        open_dataset(f"{code}:tensor", split="train")
    assert "tensors" in caught.value.hint


def test_weak_identity_still_checks_labels(code: str) -> None:
    from kdcache.datasets.identity import check_identity

    source = open_dataset(f"{code}:tensors", split="val")
    with pytest.raises(IncompatibleError, match="label of row 0"):
        check_identity(source, dataset_spec(source, card="c"), source.labels + 1, np.zeros(7, np.uint16))
