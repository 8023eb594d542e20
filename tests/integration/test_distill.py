"""Students from a store: what a run leaves behind, what it never touches, and what it refuses before the first step."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdcache.cli.main import run
from kdcache.distill import DistillConfig, distill
from kdcache.dump import DumpConfig, dump_teacher
from kdcache.errors import (
    ConfigError,
    IncompatibleError,
    KdcacheError,
    NotFoundError,
    NumericError,
    UnfinishedStoreError,
)
from kdcache.models.registry import build_model
from kdcache.models.weights import load_weights, read_weights
from tests.integration.distill_setup import write_data, write_data_and_store
from tests.small_store import small_source, write_small_store


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with data, a card and a store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCACHE_DATA_ROOT", str(tmp_path))
    monkeypatch.setenv("KDCACHE_CACHE_DIR", str(tmp_path / "cache"))
    write_data_and_store(tmp_path)
    return tmp_path


def _config(work: Path, **changes: object) -> DistillConfig:
    return replace(DistillConfig(store=str(work / "store.zarr"), out=str(work / "run"), epochs=2), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["ce", "ls", "kd", "kd-topk", "kd-pt", "kd-sim", "kd-pt+sim"])
def test_a_student_learns_with_every_seed_method(work: Path, method: str) -> None:
    result = distill(_config(work, method=method, epochs=4))
    assert result.figures["accuracy"] > 2 / 7
    assert result.figures["method"] == method


def test_the_run_folder_says_what_was_done(work: Path) -> None:
    result = distill(_config(work, temperature=2.0, alpha=0.5, topk=2, seed=3))
    kept = json.loads((work / "run" / "result.json").read_text())
    assert kept == json.loads(json.dumps(dict(result.figures)))
    assert (kept["topk"], kept["temperature"], kept["alpha"], kept["seed"], kept["epochs"]) == (2, 2.0, 0.5, 3, 2)
    assert kept["test_rows"] == 201
    assert kept["rows"] == 300
    assert 0 < kept["seconds"] < 60
    assert kept["agreement"] is kept["agreement_on"] is None  # no store over the test rows, so nothing to agree with
    assert 0 < kept["train_agreement"] <= 1
    for name, accuracy in (("calibration", "accuracy"), ("calibration_best", "accuracy_best")):
        bins = kept[name]
        right = sum(n * share for n, share in zip(bins["count"], bins["accuracy"], strict=True) if n)
        assert right / 201 == pytest.approx(kept[accuracy])
    assert kept["store_root_digest"]
    weights = read_weights(work / "run" / "last.safetensors")
    assert weights.info.training["store_root_digest"] == kept["store_root_digest"]
    built = build_model("mlp-16", num_classes=7, input_shape=(1, 6, 6))
    load_weights(built.module, work / "run" / "last.safetensors")


def test_equal_requests_give_equal_weights_and_another_seed_does_not(work: Path) -> None:
    paths = [str(work / name) for name in "abc"]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        torch.rand(3)
        distill(_config(work, out=path, seed=seed))
    files = [(Path(path) / "last.safetensors").read_bytes() for path in paths]
    assert files[0] == files[1] != files[2]


def test_k_is_the_methods_own_at_most_what_is_stored(work: Path) -> None:
    assert distill(_config(work, epochs=1)).figures["topk"] == 3  # 10 is kd-topk's own, the store holds 3
    assert distill(_config(work, epochs=1, method="ce", out=str(work / "ce"))).figures["topk"] is None


def test_agreement_is_measured_on_the_test_rows_when_a_store_over_them_is_given(work: Path) -> None:
    test = small_source(201, split="test")
    test.name = "patterns"
    write_small_store(work / "test.zarr", test, card=str(work / "patterns.toml"))
    figures = distill(_config(work, eval_store=str(work / "test.zarr"))).figures
    assert figures["agreement_on"] == "test"
    assert 2 / 7 < figures["agreement"] <= 1


def test_a_run_without_names_finds_the_only_store_and_makes_a_folder(work: Path) -> None:
    (work / "kdcache-store").mkdir()
    (work / "store.zarr").rename(work / "kdcache-store" / "store.zarr")
    first, second = (distill(DistillConfig(epochs=1)) for _ in range(2))
    assert first.folder == Path("kdcache-runs/patterns_mlp-16_kd-topk_seed0")
    assert second.folder != first.folder


def test_a_finished_run_is_not_trained_again(work: Path) -> None:
    first = distill(_config(work))
    again = distill(_config(work, resume=True))
    assert again.reused
    assert dict(again.figures) == json.loads(json.dumps(dict(first.figures)))
    with pytest.raises(IncompatibleError, match="temperature"):
        distill(_config(work, resume=True, temperature=2.0))
    source = small_source(300)
    source.name = "patterns"
    write_small_store(work / "other.zarr", source, card=str(work / "patterns.toml"), precision="exact")
    with pytest.raises(IncompatibleError, match=r"another store: store_root_digest"):
        distill(_config(work, resume=True, store=str(work / "other.zarr")))


TEACHER = """
import pathlib, torch
pathlib.Path(__file__).with_name("teacher-was-run").touch()
def factory(num_classes, input_shape):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, num_classes))
    return net, lambda image: image / 255.0
"""


def test_the_teacher_is_neither_imported_nor_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCACHE_DATA_ROOT", str(tmp_path))
    monkeypatch.setenv("KDCACHE_CACHE_DIR", str(tmp_path / "cache"))
    card = write_data(tmp_path)
    teacher = tmp_path / "teacher.py"
    teacher.write_text(TEACHER)
    dumped = dump_teacher(
        DumpConfig(dataset=str(card), teacher=f"{teacher}:factory", out="store.zarr", topk=3, allow_weak_teacher=True)
    )
    (tmp_path / "teacher-was-run").unlink()
    teacher.write_text("raise RuntimeError('the teacher was imported')")
    for name in [name for name in sys.modules if name.startswith("kdcache_user_teacher")]:
        del sys.modules[name]
    distill(DistillConfig(store=dumped.store, epochs=1, out="run"))
    teacher.unlink()
    distill(DistillConfig(store=dumped.store, epochs=1, out="run-without-file"))
    assert not (tmp_path / "teacher-was-run").exists()
    assert not [name for name in sys.modules if name.startswith("kdcache_user_teacher")]


def _swap(array: np.ndarray) -> np.ndarray:
    """Two rows of one class exchanged where possible: labels stay, examples move."""
    swapped = array.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    return swapped


def _change(work: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    with np.load(work / "patterns.npz") as content:
        arrays = dict(content)
    arrays[name] = change(arrays[name])
    if name == "train_images" and len(arrays[name]) != len(arrays["train_labels"]):
        arrays["train_labels"] = arrays["train_labels"][: len(arrays[name])]
    np.savez(work / "patterns.npz", **arrays)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("train_images", _swap, "row 0 is another example"),
        ("train_images", lambda images: images[:-1], "300 rows"),
        ("train_labels", lambda labels: np.where(np.arange(300) == 123, (labels + 1) % 7, labels), "label of row 123"),
        ("train_images", lambda images: np.where(np.arange(300)[:, None, None, None] == 299, 0, images), "row 299"),
    ],
    ids=["permuted", "shortened", "relabelled", "other pixels"],
)
def test_other_data_is_refused_before_the_first_step(
    work: Path, name: str, change: Callable[[np.ndarray], np.ndarray], says: str
) -> None:
    _change(work, name, lambda array: change(array).astype(array.dtype))
    with pytest.raises(IncompatibleError, match=says):
        distill(_config(work))
    assert not (work / "run").exists()


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"topk": 4}, IncompatibleError, "holds 3"),
        ({"topk": 0}, ConfigError, "topk"),
        ({"temperature": 0.0}, ConfigError, "temperature"),
        ({"temperature": float("nan")}, ConfigError, "temperature"),
        ({"alpha": 1.5}, ConfigError, "alpha"),
        ({"method": "kd-tokp"}, ConfigError, "kd-topk"),
        ({"method": "ce", "temperature": 2.0}, ConfigError, "no temperature"),
        ({"options": {"tial": "ghost"}}, ConfigError, "tial"),
        ({"student": "resnet8x5"}, ConfigError, "resnet8x5"),
        ({"student": "resnet8x4"}, ConfigError, "pixels"),
        ({"epochs": 0}, ConfigError, "epochs"),
        ({"optimizer": "adam"}, ConfigError, "optimizer"),
        ({"device": "tpu"}, ConfigError, "device"),
        ({"store": "nowhere.zarr"}, NotFoundError, "nowhere"),
        ({"dataset": "cifar1000"}, NotFoundError, "cifar100"),
        ({"augment": "patient"}, ConfigError, "mixes"),
    ],
    ids=str,
)
def test_bad_requests_are_refused_before_anything_is_made(
    work: Path, changes: dict[str, object], error: type[KdcacheError], says: str
) -> None:
    with pytest.raises(error, match=says):
        distill(_config(work, **changes))
    assert not (work / "run").exists()


def test_an_unfinished_store_and_a_store_of_other_classes_are_refused(work: Path) -> None:
    write_small_store(work / "half.zarr", small_source(300), card=str(work / "patterns.toml"), seal=False)
    with pytest.raises(UnfinishedStoreError):
        distill(_config(work, store=str(work / "half.zarr")))
    write_small_store(work / "nine.zarr", small_source(300, num_classes=9), card=str(work / "patterns.toml"))
    with pytest.raises(IncompatibleError, match="classes"):
        distill(_config(work, store=str(work / "nine.zarr")))


def test_a_method_whose_field_the_store_lacks_is_refused_by_name(work: Path) -> None:
    source = small_source(300)
    source.name = "patterns"
    write_small_store(work / "plain.zarr", source, card=str(work / "patterns.toml"), with_weight=False)
    with pytest.raises(IncompatibleError, match="class_weight"):
        distill(_config(work, store=str(work / "plain.zarr"), method="kd-sim", options={"similarity": "weights"}))
    assert not (work / "run").exists()


def test_an_out_folder_that_is_something_else_is_left_alone(work: Path) -> None:
    (work / "run").mkdir()
    (work / "run" / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="not a run folder"):
        distill(_config(work))
    assert (work / "run" / "thesis.tex").read_text() == "precious"


def test_an_exploding_run_keeps_its_last_good_checkpoint(work: Path) -> None:
    with pytest.raises(NumericError):
        distill(_config(work, lr=1e30, epochs=3, warmup_epochs=2.9))
    assert (work / "run" / "config.json").is_file()
    assert not (work / "run" / "result.json").exists()


def test_rows_of_image_files_are_compared_as_they_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCACHE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("kdcache.distill.plan.ROWS_READ_FIRST", 2)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(24):
            folder = tmp_path / "data" / split / f"class-{number % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
    card = tmp_path / "files.toml"
    card.write_text(
        'name = "files"\ntitle = "t"\nsource = "image-folder"\nlicence = "l"\nobtain = "o"\n'
        'mean = [0.5, 0.5, 0.5]\nstd = [0.3, 0.3, 0.3]\npath = "data"\n'
        '[splits]\ntrain = "train"\nval = "val"\n[defaults]\nstudent = "mlp-8"\nbatch_size = 8\nlr = 0.01\n'
    )
    monkeypatch.setenv("KDCACHE_DATA_ROOT", str(tmp_path))
    dumped = dump_teacher(
        DumpConfig(dataset=str(card), teacher="mlp-8", init_seed=0, out="s.zarr", topk=2, allow_weak_teacher=True)
    )
    distill(DistillConfig(store=dumped.store, epochs=1, out="good", workers=1))
    victim = tmp_path / "data" / "train" / "class-1" / "13.png"
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(victim)
    with pytest.raises(IncompatibleError, match="row 12 "):  # class-1's fifth file after class-0's eight
        distill(DistillConfig(store=dumped.store, epochs=1, out="bad", workers=1))


def test_a_student_that_diverged_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dump-teacher", "--out", str(tmp_path / "s")]) == 0
    words = ["distill", "--store", str(tmp_path / "s"), "--method", "ce", "--epochs", "1", "--out"]
    capsys.readouterr()
    assert run([*words, str(tmp_path / "good"), "--eval-split", "val"]) == 0
    said = capsys.readouterr().err
    assert "worse than guessing" not in said
    assert ", val top-1 " in said, "the epoch's line names other rows than it was evaluated on"
    assert run([*words, str(tmp_path / "bad"), "--lr", "30"]) == 0
    assert "worse than guessing" in capsys.readouterr().err
