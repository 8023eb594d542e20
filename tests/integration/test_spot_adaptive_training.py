"""Spot-adaptive students to the end: exact resume, what is refused, and what a run leaves behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import kdcache
from kdcache.datasets.cards import load_card
from kdcache.dump import DumpConfig, dump_teacher
from kdcache.errors import ConfigError, IncompatibleError
from kdcache.models.registry import build_model
from kdcache.models.weights import save_weights
from pipelines.spot_adaptive.run import main
from pipelines.spot_adaptive.training import StudentConfig, train_student


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> StudentConfig:
    """A store of two views with an unusually small teacher, and one student's settings."""
    folder: Path = tmp_path_factory.mktemp("students")
    for seed in (0, 1):
        torch.manual_seed(seed)
        data = load_card("digit-pairs").preprocessing
        teacher = build_model("resnet8x0.5", num_classes=100, input_shape=(1, 8, 16), data=data).module.eval()
        save_weights(teacher, folder / f"teacher{seed}.safetensors", {})
    dump_teacher(
        DumpConfig(
            split="train[0:96]",
            teacher="resnet8x0.5",
            weights=str(folder / "teacher0.safetensors"),
            allow_weak_teacher=True,
            features="layer2,penultimate",
            views=2,
            augment="cifar",
            out=str(folder / "store.zarr"),
        )
    )
    return StudentConfig(
        store=str(folder / "store.zarr"),
        data_root="",
        student="resnet8x0.5",
        method="crd",
        epochs=3,
        batch_size=32,
        negatives=16,
        eval_split="val",
        out=str(folder / "straight"),
    )


@pytest.mark.parametrize(("method", "control"), [("crd", "adaptive"), ("fitnet", "inverted")])
def test_a_resumed_run_ends_with_the_same_bits(
    config: StudentConfig, tmp_path: Path, method: str, control: str
) -> None:
    asked = replace(config, method=method, control=control)
    straight = train_student(replace(asked, out=str(tmp_path / "straight")))
    parted = replace(asked, out=str(tmp_path / "parted"))
    assert train_student(parted, stop_after=1) == {}
    assert not (tmp_path / "parted" / "result.json").exists()
    resumed = train_student(parted)
    weights = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("straight", "parted")]
    assert weights[0] == weights[1]
    assert resumed["history"] == straight["history"]
    assert [line["epoch"] for line in straight["history"]] == [1, 2, 3]
    assert straight["variant"] == ("sakd" if method == "crd" else "sakd-prefix")
    assert train_student(parted) == json.loads((tmp_path / "parted" / "result.json").read_text())
    with pytest.raises(IncompatibleError, match="control"):
        train_student(replace(parted, control="always"))


def test_a_live_teacher_must_be_the_stores_and_is_asked_for_only_where_it_is_needed(
    config: StudentConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(config.store).parent
    live = replace(config, method="fitnet", epochs=1, live_teacher=str(folder / "teacher0.safetensors"))
    found = train_student(replace(live, out=str(tmp_path / "live")))
    assert found["variant"] == "sakd-live"
    assert "outside the cache promise" in capsys.readouterr().err
    other = replace(live, live_teacher=str(folder / "teacher1.safetensors"), out=str(tmp_path / "other"))
    with pytest.raises(IncompatibleError, match="the store's teacher has"):
        train_student(other)
    with pytest.raises(ConfigError, match="--live-teacher with crd"):
        train_student(replace(config, live_teacher=live.live_teacher))
    with pytest.raises(IncompatibleError, match="no feature 'layer3'"):
        train_student(replace(config, method="sp", out=str(tmp_path / "sp")))
    with pytest.raises(ConfigError, match="control 'sometimes'"):
        train_student(replace(config, control="sometimes"))


def test_over_plain_examples_the_student_sees_them_plain_whatever_the_card_says(
    config: StudentConfig, tmp_path: Path
) -> None:
    """Features of one image beside an augmented other one would be wrong targets, and nothing would say so."""
    card = tmp_path / "augmented.toml"
    text = (Path(kdcache.__file__).parents[1] / "data" / "cards" / "digit-pairs.toml").read_text()
    assert "\n[defaults]\n" in text
    card.write_text(text.replace("\n[defaults]\n", '\n[defaults]\naugment = "cifar"\n'))
    dump_teacher(
        DumpConfig(
            dataset=str(card),
            split="train[0:96]",
            teacher="resnet8x0.5",
            weights=str(Path(config.store).parent / "teacher0.safetensors"),
            allow_weak_teacher=True,
            features="penultimate",
            out=str(tmp_path / "plain.zarr"),
        )
    )
    plain = replace(config, store=str(tmp_path / "plain.zarr"), method="rkd", epochs=1, out=str(tmp_path / "student"))
    assert train_student(plain)["augment"] is None


def test_the_recipe_runs_and_continues(tmp_path: Path, recipe: Callable[..., str]) -> None:
    words = ("--scale", "smoke", "--folder", str(tmp_path), "--results", str(tmp_path / "results"), "--live-teacher")
    first = recipe(*words)
    for method in ("rkd", "sp", "fitnet", "at"):
        assert f"| {method} | sakd" in first
    assert "sakd-prefix" in first
    students = sorted((tmp_path / "smoke" / "students").glob("*/last.safetensors"))
    assert len(students) == 12
    before = [path.stat().st_mtime_ns for path in students]
    assert recipe(*words) == first
    assert [path.stat().st_mtime_ns for path in students] == before, "a finished student was trained again"
    assert recipe(*words, "--finished") == first
    for name in ("spot_adaptive.svg", "spot_adaptive-shares.svg"):
        assert ElementTree.fromstring((tmp_path / "results" / name).read_text()).tag.endswith("svg")


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_a_dry_run_says_the_cost_and_makes_nothing(scale: str, tmp_path: Path, recipe: Callable[..., str]) -> None:
    told = recipe("--scale", scale, "--folder", str(tmp_path / "none"), "--dry-run")
    assert "TFLOP/s assumed" in told
    assert "live" not in told
    assert "outside the cache promise" in recipe("--scale", scale, "--dry-run", "--live-teacher")
    assert not (tmp_path / "none").exists()


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The recipe's command line in this process; gives what it prints, and it must end well."""

    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["pipelines.spot_adaptive.run", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    return call
