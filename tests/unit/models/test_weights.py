"""Weights files: what is read back is what was saved, and everything else is refused by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from kdcache.errors import IncompatibleError, NotFoundError, ResourceError
from kdcache.models.registry import build_model
from kdcache.models.weights import load_weights, read_weights, save_weights, state_digest, weights_state_digest


def _model(seed: int = 0, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("cnn-4", num_classes=classes, input_shape=(1, 8, 8)).module


def test_saved_weights_load_back_exactly_with_their_provenance(tmp_path: Path) -> None:
    saved = save_weights(_model(0), tmp_path / "w.safetensors", {"epochs": 3, "data": "digits"})
    other = _model(1)
    loaded = load_weights(other, tmp_path / "w.safetensors")
    assert loaded == saved
    assert loaded.training == {"epochs": 3, "data": "digits"}
    assert state_digest(other.state_dict()) == loaded.state_digest == state_digest(_model(0).state_dict())


def test_saving_the_same_weights_gives_the_same_bytes(tmp_path: Path) -> None:
    digests = {save_weights(_model(0), tmp_path / name, {"a": 1}).sha256 for name in ("x", "y.safetensors")}
    assert len(digests) == 1


@pytest.mark.parametrize("key", [None, "state_dict", "model", "net", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_in_the_usual_wrappings_have_the_same_digest(
    tmp_path: Path, key: str | None, prefix: str, legacy: bool
) -> None:
    state = {prefix + name: tensor for name, tensor in _model().state_dict().items()}
    path = tmp_path / "w.pth"
    torch.save(state if key is None else {key: state, "epoch": 3}, path, _use_new_zipfile_serialization=not legacy)
    assert weights_state_digest(path) == state_digest(_model().state_dict())


def test_the_state_digest_sees_names_shapes_types_and_numbers() -> None:
    base = {"a": torch.arange(6.0).view(2, 3)}
    variants = [
        {"b": base["a"]},
        {"a": base["a"].view(3, 2)},
        {"a": base["a"].double()},
        {"a": base["a"] + 1e-6},
        {**base, "c": torch.zeros(0)},
    ]
    assert len({state_digest(state) for state in [base, *variants]}) == 6
    assert state_digest({"a": base["a"].t().contiguous().t()}) == state_digest(base)


def test_a_mismatch_names_missing_unexpected_and_shapes(tmp_path: Path) -> None:
    state = dict(_model(classes=7).state_dict())
    del state["features.0.weight"]
    state["extra.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pth")
    model = _model()
    before = state_digest(model.state_dict())
    with pytest.raises(IncompatibleError) as caught:
        load_weights(model, tmp_path / "w.pth")
    for part in (
        "missing: features.0.weight",
        "unexpected: extra.weight",
        "fc.bias (7,) in the file, (10,) in the model",
    ):
        assert part in caught.value.message
    assert state_digest(model.state_dict()) == before


def test_batch_counters_may_be_missing(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in _model().state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "w.pth")
    load_weights(_model(1), tmp_path / "w.pth")


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("executed"),))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.pth", b"these are not weights"),
        ("empty.pth", b""),
        ("cut.safetensors", b'\x10\x00\x00\x00\x00\x00\x00\x00{"a"'),
        ("huge.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"),
        ("list.pth", pickle.dumps([1, 2])),
        ("code.pth", pickle.dumps({"a": _Payload()})),
        ("png.pth", b"\x89PNG\r\n\x1a\n" + bytes(100)),
        ("zip.pth", b"PK\x03\x04" + bytes(100)),
    ],
)
def test_files_that_are_not_weights_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(IncompatibleError, match=name):
        read_weights(tmp_path / name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "value", [{"model": {"a": 1}}, {}, [torch.zeros(1)], torch.zeros(2), {"a": torch.zeros(1), "b": 2}]
)
def test_torch_files_without_a_state_dict_are_refused(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(IncompatibleError, match="expected a state dict"):
        read_weights(tmp_path / "w.pth")


def test_whole_pickled_modules_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(IncompatibleError, match="not a safetensors file nor plain torch weights") as caught:
        read_weights(tmp_path / "w.pth")
    assert "state_dict" in caught.value.hint


def test_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        read_weights(tmp_path / "w.pth")


def test_a_failed_save_leaves_the_old_file_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    old = save_weights(_model(0), path, {})

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(ResourceError, match="No space left"):
        save_weights(_model(1), path, {})
    assert read_weights(path).info == old
    assert list(tmp_path.iterdir()) == [path]


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    save_weights(model, tmp_path / "w.safetensors", {})
    load_weights(model, tmp_path / "w.safetensors")
