"""The scripts of data/scripts, on archives and folders of the real layout made here; nothing is downloaded."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from kdcache.datasets.availability import look_for
from kdcache.datasets.cards import load_card, open_dataset, shipped_folder
from kdcache.parallel.cell_work import load

SCRIPTS = shipped_folder("scripts")
ROOT = Path(__file__).resolve().parents[3]


def script(name: str) -> ModuleType:
    """A script as a module."""
    return sys.modules[load(f"{SCRIPTS / name}.py:main").__module__]


def tar_of(files: Mapping[str, bytes], *, mode: str = "w") -> bytes:
    """A tar archive."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def image_bytes(value: int) -> bytes:
    """A small image."""
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(content, "png")
    return content.getvalue()


WNIDS = ("n01", "n02", "n03")


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """ILSVRC archives of three classes, whose numbers are in another order than their ids; one synset is no class."""
    scipy_io = pytest.importorskip("scipy.io", reason="the devkit is a .mat file")
    folder = tmp_path / "archives"
    folder.mkdir()
    classes = {
        f"{wnid}.tar": tar_of({f"{wnid}_{n}.JPEG": image_bytes(10 * label + n) for n in range(2)})
        for label, wnid in enumerate(WNIDS)
    }
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_of(classes))
    val = {f"ILSVRC2012_val_{n:08d}.JPEG": image_bytes(100 + n) for n in (4, 2, 1, 3)}
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_of(val))
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(1, "n03", "c", "g", 0), (2, "n01", "a", "g", 0), (3, "n02", "b", "g", 0), (4, "n00", "all", "g", 3)]
    meta = io.BytesIO()
    scipy_io.savemat(meta, {"synsets": np.array(rows, dtype=kinds)})
    place = "ILSVRC2012_devkit_t12/data"
    devkit = {f"{place}/meta.mat": meta.getvalue(), f"{place}/ILSVRC2012_validation_ground_truth.txt": b"2\n1\n3\n2\n"}
    (folder / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(tar_of(devkit, mode="w:gz"))
    return folder


def test_imagenet_is_unpacked_into_class_folders(archives: Path, tmp_path: Path) -> None:
    unpack, out = script("prepare_imagenet"), tmp_path / "imagenet"
    wnids = unpack.validation_classes(archives / unpack.DEVKIT)
    assert wnids == ["n01", "n03", "n02", "n01"]
    assert unpack.unpack_val(archives / unpack.VAL, wnids, out / "val") == 4
    assert sorted(path.relative_to(out / "val").as_posix() for path in (out / "val").rglob("*.JPEG")) == [
        "n01/ILSVRC2012_val_00000001.JPEG",
        "n01/ILSVRC2012_val_00000004.JPEG",
        "n02/ILSVRC2012_val_00000003.JPEG",
        "n03/ILSVRC2012_val_00000002.JPEG",
    ]
    assert (out / "val/n03/ILSVRC2012_val_00000002.JPEG").read_bytes() == image_bytes(102)
    assert unpack.unpack_train(archives / unpack.TRAIN, out / "train") == 3
    assert (out / "train/n02/n02_1.JPEG").read_bytes() == image_bytes(11)
    assert not list(out.rglob("*.partial"))


def test_unpacking_imagenet_continues_where_it_stopped(archives: Path, tmp_path: Path) -> None:
    unpack, out = script("prepare_imagenet"), tmp_path / "train"
    unpack.unpack_train(archives / unpack.TRAIN, out)
    for path in (out / "n02").iterdir():
        path.unlink()
    (out / "n02").rename(out / "n02.partial")  # killed while this class was written
    assert unpack.unpack_train(archives / unpack.TRAIN, out) == 1
    assert len(list((out / "n02").iterdir())) == 2
    assert unpack.unpack_val(archives / unpack.VAL, ["n01"] * 4, out) == 0, "what is there was unpacked again"


def test_other_archives_are_refused(archives: Path, tmp_path: Path) -> None:
    unpack = script("prepare_imagenet")
    with pytest.raises(SystemExit, match="expected 29b22e"):
        unpack.check_md5(archives / unpack.VAL, load_card("imagenet").archives[unpack.VAL])
    unpack.check_md5(archives / unpack.VAL, hashlib.md5((archives / unpack.VAL).read_bytes()).hexdigest())
    with pytest.raises(SystemExit, match="register at"):
        unpack.check_md5(archives / "nothing.tar", "")
    with pytest.raises(SystemExit, match="4 images, but the devkit has 3 labels"):
        unpack.unpack_val(archives / unpack.VAL, ["n01"] * 3, tmp_path / "val")
    (archives / "evil.tar").write_bytes(tar_of({"../n01.tar": b""}))
    with pytest.raises(SystemExit, match="is not a plain file name"):
        unpack.unpack_train(archives / "evil.tar", tmp_path / "train")


def test_tiny_imagenet_is_unpacked_and_sorted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, archive = "tiny-imagenet-200", tmp_path / "tiny.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr(f"{name}/train/n01/images/n01_0.JPEG", image_bytes(1))
        content.writestr(f"{name}/val/images/val_0.JPEG", image_bytes(2))
        content.writestr(f"{name}/val/val_annotations.txt", "val_0.JPEG\tn01\t0\t0\t62\t57\n")
    tiny = script("prepare_tiny_imagenet")
    folder = tiny.unpack(archive, tmp_path)
    assert "not the archive that others have" in capsys.readouterr().out
    assert tiny.sort_validation_images(folder) == 1
    assert (folder / "val" / "n01" / "val_0.JPEG").read_bytes() == image_bytes(2)
    assert tiny.sort_validation_images(folder) == 0
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("../evil", b"")
    with pytest.raises(SystemExit, match="is this the right archive"):
        tiny.unpack(archive, tmp_path)


def run_script(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A script as a user runs it."""
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)


def test_ptb_files_of_another_text_are_found_and_refused(tmp_path: Path) -> None:
    names = ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")
    files = {f"./simple-examples/data/{name}": b" no asbestos was found \n" * 3 for name in names}
    (tmp_path / "simple-examples.tgz").write_bytes(tar_of({**files, "./simple-examples/rnn": b"x"}, mode="w:gz"))
    done = run_script("prepare_ptb", str(tmp_path / "simple-examples.tgz"), "--data-root", str(tmp_path))
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("ptb ") == 3
    assert sorted(path.name for path in (tmp_path / "ptb").iterdir()) == sorted(names)


def test_synthetic_data_opens_under_its_card(tmp_path: Path) -> None:
    words = ("--share", "0.02", "--data-root", str(tmp_path))
    done = run_script("prepare_synthetic", *words)
    assert done.returncode == 0, done.stderr
    assert look_for(load_card("synthetic"), tmp_path).state == "found"
    data = open_dataset("synthetic", split="train", root=tmp_path)
    assert (len(data), data.num_classes, data.example(0).shape) == (100, 50, (500,))
    again = run_script("prepare_synthetic", *words)
    assert again.returncode == 1
    assert "remove it" in again.stderr


def test_a_card_is_made_for_a_folder_of_images_and_for_arrays(tmp_path: Path) -> None:
    for split, values in {"train": (10, 30), "test": (20, 40)}.items():
        for label, value in zip("ab", values, strict=True):
            (tmp_path / "flowers" / split / label).mkdir(parents=True)
            (tmp_path / "flowers" / split / label / "0.png").write_bytes(image_bytes(value))
    make = script("make_card")
    text = make.card_text("flowers", tmp_path / "flowers", "internal")
    (tmp_path / "flowers.toml").write_text(text)
    card = load_card(str(tmp_path / "flowers.toml"))
    assert (card.num_classes, card.image_shape, list(card.splits)) == (2, (3, 8, 8), ["train", "test"])
    assert card.mean == pytest.approx([20 / 255] * 3, abs=1e-4)
    assert card.std == pytest.approx([10 / 255] * 3, abs=1e-4)
    assert len(open_dataset(str(card.file), split="test", root=tmp_path)) == 2
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.savez(tmp_path / "rows.npz", train_inputs=rows, train_labels=np.array([0, 1, 2, 0]))
    (tmp_path / "rows.toml").write_text(make.card_text("rows", tmp_path / "rows.npz", "internal"))
    assert open_dataset(str(tmp_path / "rows.toml"), split="train", root=tmp_path).num_classes == 3


def test_a_broken_image_is_named_before_the_card_is_written(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / "train" / label).mkdir(parents=True)
        (tmp_path / "train" / label / "0.png").write_bytes(image_bytes(3)[: 40 if label == "b" else None])
    done = run_script("make_card", str(tmp_path), "--out", str(tmp_path / "card.toml"))
    assert done.returncode == 3
    assert "b/0.png" in done.stderr
    assert not (tmp_path / "card.toml").exists()
