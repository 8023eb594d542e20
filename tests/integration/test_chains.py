"""Students that become teachers, by the command line: teacher assistants and born-again networks, and their lineage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdcache.cli.main import run
from kdcache.lineage import ancestors_of, in_words
from kdcache.models.weights import read_weights

ROWS = ["--split", "train[:400]"]


class Folder:
    """Commands in one folder; every store and run has a name."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self._capsys = capsys

    def said(self, *words: str) -> dict[str, Any]:
        self._capsys.readouterr()
        assert run(["-q", *words, "--json"]) == 0
        found: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        return found

    def dump(self, name: str, *words: str) -> dict[str, Any]:
        return self.said("dump-teacher", *ROWS, "--allow-weak-teacher", "--out", str(self.path / name), *words)

    def distill(self, store: str, run_name: str, student: str, *words: str) -> Path:
        where = ["--store", str(self.path / store), "--out", str(self.path / run_name), "--student", student]
        self.said("distill", *where, "--epochs", "2", *words)
        return self.path / run_name / "last.safetensors"

    def info(self, name: str) -> str:
        self._capsys.readouterr()
        assert run(["info", str(self.path / name)]) == 0
        return self._capsys.readouterr().out

    def manifest(self, name: str) -> dict[str, Any]:
        manifest: dict[str, Any] = self.said("info", str(self.path / name))["manifest"]
        return manifest


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Folder:
    return Folder(tmp_path, capsys)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of the sample's own teacher."""
    path = tmp_path_factory.mktemp("chain") / "teacher.zarr"
    assert run(["-q", "dump-teacher", *ROWS, "--allow-weak-teacher", "--out", str(path)]) == 0
    return str(path)


def test_teacher_assistant_and_student_with_their_lineage(folder: Folder, teacher: str) -> None:
    first = folder.said("info", teacher)
    assistant = folder.distill(teacher, "assistant", "mlp-64", "--method", "kd")
    second = folder.dump("assistant.zarr", "--teacher", "mlp-64", "--weights", str(assistant))
    student = folder.distill("assistant.zarr", "student", "mlp-16", "--method", "kd-topk")

    teachers = [folder.manifest(name)["teacher"] for name in (teacher, "assistant.zarr")]
    assert teachers[1]["state_digest"] == read_weights(assistant).info.state_digest
    training = teachers[1]["training"]
    assert (training["recipe"], training["method"]) == ("distill", "kd")
    assert training["store_root_digest"] == first["root_digest"]
    assert [entry["source"] for entry in training["lineage"]] == ["cnn-16"]
    assert training["lineage"][0]["state_digest"] == teachers[0]["state_digest"]

    line = ancestors_of(read_weights(student).info.training)
    assert [entry["source"] for entry in line] == ["mlp-64", "cnn-16"]
    assert line[0]["store_root_digest"] == first["root_digest"]
    assert line[0]["method"] == "kd"
    assert f"mlp-64 (distill kd store {first['root_digest'][:8]}) <- cnn-16" in folder.info("assistant.zarr")
    assert second["store_key"] != first["store_key"]


def test_born_again_twice_and_self_training(folder: Folder, teacher: str) -> None:
    """A network of one architecture, its own teacher twice; Tf-KD's self-training is the first of these steps."""
    weights = folder.distill(teacher, "run-0", "mlp-32", "--method", "ce")
    assert ancestors_of(read_weights(weights).info.training) == []  # it learned from labels, not from the teacher
    keys = []
    for generation, method in enumerate(["tfkd-self", "kd"], start=1):
        store = f"store-{generation}.zarr"
        keys.append(folder.dump(store, "--teacher", "mlp-32", "--weights", str(weights))["store_key"])
        weights = folder.distill(store, f"run-{generation}", "mlp-32", "--method", method)
    assert keys[0] != keys[1]
    line = ancestors_of(read_weights(weights).info.training)
    assert [entry["method"] for entry in line] == ["tfkd-self", "ce"]
    assert len({entry["state_digest"] for entry in line}) == 2
    assert "mlp-32 (distill tfkd-self store" in folder.info("store-2.zarr")


def test_how_weights_were_trained_is_no_part_of_the_key(folder: Folder, teacher: str, tmp_path: Path) -> None:
    """The same tensors without their provenance are the same teacher: the store is found again."""
    from safetensors.torch import save_file

    weights = folder.distill(teacher, "run", "mlp-16")
    folder.dump("one.zarr", "--teacher", "mlp-16", "--weights", str(weights))
    save_file(dict(read_weights(weights).state), tmp_path / "bare.safetensors")
    again = folder.dump("one.zarr", "--teacher", "mlp-16", "--weights", str(tmp_path / "bare.safetensors"))
    assert again["reused"]


def test_the_virtual_teacher_needs_no_opinion(folder: Folder, teacher: str) -> None:
    weights = folder.distill(teacher, "run", "mlp-16", "--method", "tfkd-reg", "--set", "correct=0.95")
    training = read_weights(weights).info.training
    assert training["options"]["correct"] == 0.95
    assert training["lineage"] == []


def test_self_training_from_another_architecture_is_pointed_out(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--store", teacher, "--out", str(tmp_path / "run"), "--epochs", "1", "--method", "tfkd-self"]
    assert run(["distill", *words]) == 0
    assert "own architecture" in capsys.readouterr().err


def test_foreign_metadata_is_no_lineage() -> None:
    for kept in ("a, b", 7, None, [1, "x"]):
        assert ancestors_of({"lineage": kept}) == []
    assert in_words({"source": "resnet20", "state_digest": "0" * 64, "training": {}}) == ""
    said = in_words({"source": "mlp", "training": {"recipe": "train-teacher", "method": "ls"}})
    assert said == "mlp (train-teacher ls)"
