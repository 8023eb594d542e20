"""A trained teacher is directly a `--weights`, says how it was trained, and resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from kdcache.dump import DumpConfig, dump_teacher
from kdcache.errors import ConfigError, IncompatibleError, NotFoundError
from kdcache.models.weights import read_weights
from kdcache.store.reader import open_reader
from kdcache.teacher_training import TeacherConfig, train_teacher
from tests.integration.distill_setup import write_data


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TeacherConfig:
    """A small teacher on data of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCACHE_DATA_ROOT", str(tmp_path))
    monkeypatch.setenv("KDCACHE_CACHE_DIR", str(tmp_path / "cache"))
    card = write_data(tmp_path)
    return TeacherConfig(dataset=str(card), model="mlp-32", epochs=8, lr=0.1, batch_size=32, seed=1, out="teacher")


def test_a_teacher_is_a_weights_file_for_dump_teacher(
    config: TeacherConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train_teacher(config)
    assert f", {result.figures['eval_split']} top-1 " in capsys.readouterr().err
    assert result.figures["accuracy"] > 0.5
    training = read_weights(result.weights).info.training
    assert (training["model"], training["method"], training["training"]["seed"]) == ("mlp-32", "ce", 1)
    dumped = dump_teacher(DumpConfig(dataset=config.dataset, teacher="mlp-32", weights=str(result.weights), topk=3))
    manifest = open_reader(dumped.store).manifest
    assert manifest.teacher.training["figures"]["test_top1"] == result.figures["accuracy"]
    assert manifest.quality["top1"] == pytest.approx(result.figures["train_accuracy"], abs=0.15)


def test_label_smoothing_teaches_less_sure_teachers(config: TeacherConfig) -> None:
    sure = train_teacher(config)
    smooth = train_teacher(replace(config, method="ls", options={"smoothing": 0.3}, out="smooth"))
    assert smooth.figures["train_loss"] > sure.figures["train_loss"]
    assert smooth.figures["options"] == {"smoothing": 0.3}


def test_augmentation_is_fresh_in_every_epoch_and_equal_for_equal_seeds(config: TeacherConfig) -> None:
    files = []
    for out, augment in (("a", "cifar"), ("b", "cifar"), ("c", "none")):
        files.append(train_teacher(replace(config, epochs=2, augment=augment, out=out)).weights.read_bytes())
    assert files[0] == files[1] != files[2]


def test_only_methods_without_a_teacher_train_teachers(config: TeacherConfig) -> None:
    with pytest.raises(ConfigError, match="ce or ls"):
        replace(config, method="kd")
    train_teacher(replace(config, epochs=1))
    with pytest.raises(ConfigError, match="holds a run already"):
        train_teacher(replace(config, epochs=1))
    with pytest.raises(IncompatibleError, match="training"):
        train_teacher(replace(config, epochs=2, resume=True))


def test_rows_to_evaluate_on_that_are_not_there_leave_no_run_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCACHE_CACHE_DIR", str(tmp_path / "cache"))
    for split in ("train", "val"):  # the layout of ImageNet: no test
        for name in "ab":
            (tmp_path / "images" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / split / name / "0.png")
    config = TeacherConfig(
        dataset="imagefolder", data_root=tmp_path / "images", model="mlp-8", epochs=1, batch_size=2, out="teacher"
    )
    with pytest.raises(NotFoundError, match=r"no folder .*test for split 'test'; there is train, val") as caught:
        train_teacher(config)
    assert "--eval-split" in caught.value.hint
    assert not (tmp_path / "teacher").exists(), "the corrected command would be told that a run is there"
