"""CIFAR and Fashion-MNIST as torchvision lays them out: its pixels, its order, none of its pickles' code."""

from __future__ import annotations

import gc
import gzip
import hashlib
import pickle
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

from kdcache.datasets.cards import load_card, open_dataset
from kdcache.datasets.source import ArraySource
from kdcache.datasets.torchvision_adapter import open_cifar, open_fashion_mnist
from kdcache.errors import IncompatibleError, NotFoundError

RNG = np.random.default_rng(0)


class _LooseCifar10(CIFAR10):
    train_list = [[name, None] for name, _ in CIFAR10.train_list]  # noqa: RUF012
    test_list = [[name, None] for name, _ in CIFAR10.test_list]  # noqa: RUF012
    meta = {**CIFAR10.meta, "md5": None}  # noqa: RUF012


class _LooseCifar100(CIFAR100):
    train_list = [["train", None]]  # noqa: RUF012
    test_list = [["test", None]]  # noqa: RUF012
    meta = {**CIFAR100.meta, "md5": None}  # noqa: RUF012


def _write_cifar10(root: Path) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        batch = {"data": RNG.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [3, 1, 0, 9]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = {"label_names": [f"class{i}" for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))
    return folder


def test_cifar10_batches_read_as_torchvision_reads_them(tmp_path: Path) -> None:
    folder = _write_cifar10(tmp_path)
    for train in (True, False):
        theirs = _LooseCifar10(str(tmp_path), train=train)
        files = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
        meta = ("batches.meta", "label_names")
        ours = open_cifar(folder, files, label_key="labels", meta=meta, name="cifar10", split="x", md5={})
        assert np.array_equal(ours.examples, theirs.data)
        assert ours.labels.tolist() == theirs.targets
        assert list(ours.class_names) == theirs.classes


def test_a_split_is_read_once_until_its_files_change(tmp_path: Path) -> None:
    folder = _write_cifar10(tmp_path)

    def opened(split: str) -> ArraySource:
        meta = ("batches.meta", "label_names")
        return open_cifar(folder, [split], label_key="labels", meta=meta, name="cifar10", split=split, md5={})

    first = opened("test_batch")
    assert opened("test_batch") is first
    changed = {"data": np.zeros((4, 3072), np.uint8), "labels": [1, 1, 1, 1]}
    (folder / "test_batch").write_bytes(pickle.dumps(changed, protocol=2))
    assert opened("test_batch").labels.tolist() == [1, 1, 1, 1]
    kept = weakref.ref(opened("data_batch_1"))
    del first
    for other in ("data_batch_2", "data_batch_3"):
        opened(other)
    gc.collect()
    assert kept() is None, "more than the last two splits stay in memory"


def test_files_other_than_the_published_ones_are_refused(tmp_path: Path) -> None:
    _write_cifar10(tmp_path)
    with pytest.raises(IncompatibleError, match="data_batch_1: not the published file"):
        open_dataset("cifar10", split="train", root=tmp_path)
    card = load_card("cifar10")
    assert {(name, md5) for name, md5 in CIFAR10.train_list + CIFAR10.test_list} == set(card.md5.items())


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    "content", [b"", b"hello", pickle.dumps(_Payload()), pickle.dumps([1]), pickle.dumps({"data": 3})]
)
def test_a_hostile_or_broken_pickle_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").write_bytes(content)
    meta = ("meta", "fine_label_names")
    with pytest.raises(IncompatibleError, match="train"):
        open_cifar(tmp_path, ["train"], label_key="fine_labels", meta=meta, name="x", split="train", md5={})
    assert not (tmp_path / "executed").exists()


def test_missing_batch_is_not_found(tmp_path: Path) -> None:
    folder = _write_cifar10(tmp_path)
    (folder / "data_batch_1").unlink()
    with pytest.raises(NotFoundError, match="data_batch_1: no such file"):
        open_dataset("cifar10", split="train", root=tmp_path)


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, dtype=">u4").tobytes() + array.tobytes()


def test_idx_files_plain_or_gzipped(tmp_path: Path) -> None:
    images, labels = RNG.integers(0, 256, (3, 28, 28), dtype=np.uint8), np.array([1, 2, 9], dtype=np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(_idx(images))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(labels)))
    source = open_fashion_mnist(tmp_path, name="fashion-mnist", split="train")
    assert np.array_equal(source.examples[..., 0], images)
    assert source.labels.tolist() == [1, 2, 9]
    (tmp_path / "train-images-idx3-ubyte").write_bytes(_idx(images)[:-1])
    with pytest.raises(IncompatibleError, match="cut short"):
        open_fashion_mnist(tmp_path, name="fashion-mnist", split="train")


@pytest.mark.shared
def test_real_fashion_mnist_is_the_pinned_one_in_torchvisions_order(shared: Path) -> None:
    ours = open_dataset("fashion-mnist", split="test", root=shared)
    theirs = FashionMNIST(str(shared), train=False, download=False)
    assert np.array_equal(ours.example(77)[..., 0], theirs.data[77].numpy())
    assert ours.labels.tolist() == theirs.targets.tolist()
    assert list(ours.class_names) == theirs.classes
    assert len(open_dataset("fashion-mnist", split="train", root=shared)) == 60_000


@pytest.mark.slow
@pytest.mark.shared
def test_real_cifar100_is_the_pinned_one_in_torchvisions_order(shared: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(shared / "unpack.py"), str(tmp_path), "--python"], check=True)
    for split in ("train", "test"):
        ours = open_dataset("cifar100", split=split, root=tmp_path)
        theirs = _LooseCifar100(str(tmp_path), train=split == "train")
        assert np.array_equal(ours.examples, theirs.data)
        assert ours.labels.tolist() == theirs.targets
        assert list(ours.class_names) == theirs.classes
    # the published sha256 of the test pixels, from the shared data's own unpacker
    published = "4cb8e5d9309da489bf6b19cc10cd96c3ae6f8daf225380b605aaee4c0d6aee19"
    assert hashlib.sha256(ours.examples.tobytes()).hexdigest() == published
    repacked = tmp_path / "one.toml"
    digest = load_card("cifar100").digests["test"]
    repacked.write_text(
        'name="one"\ntitle="t"\nsource="npz"\nlicence="l"\nobtain="o"\npath="cifar100.npz"\n'
        f'[splits]\ntest="test"\n[digests]\ntest="{digest}"\n'
    )
    assert len(open_dataset(str(repacked), split="test", root=tmp_path)) == 10_000
