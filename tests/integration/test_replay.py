"""`verify --replay` and `--views` on the embedded sample: the same teacher and pixels say yes, others say no."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdcache.cli.main import run
from kdcache.dump import DumpConfig, dump_teacher
from kdcache.models.weights import read_weights
from kdcache.replay import LARGEST_DISTANCE, distance
from kdcache.targets.encode import encode_topk

SPLIT = "train[:700]"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("replay") / "store.zarr"
    dump_teacher(DumpConfig(split=SPLIT, out=str(path), augment="cifar", views=2, allow_weak_teacher=True))
    return path


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = run(["-q", "verify", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_same_teacher_says_the_same_again(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = asked(capsys, str(store), "--replay", "64", "--views", "--json")
    document = json.loads(out)
    assert code == 0
    assert [item["ok"] for item in document["again"]] == [True, True]
    assert "64 rows asked again" in document["again"][1]["said"]


def test_another_teacher_is_refused_by_name(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped = Path(__file__).resolve().parents[2] / "data" / "sample" / "teacher.safetensors"
    changed = {name: tensor.clone() for name, tensor in read_weights(shipped).state.items()}
    first = next(name for name, tensor in changed.items() if tensor.dtype == torch.float32)
    changed[first] += 1e-3
    save_file(changed, tmp_path / "other.safetensors")
    code, _, err = asked(capsys, str(store), "--replay", "8", "--weights", str(tmp_path / "other.safetensors"))
    assert code == 3
    assert "state_digest" in err


def test_a_store_of_the_users_own_teacher_asks_for_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n\n\ndef teacher(num_classes, input_shape):\n"
        "    layers = torch.nn.Flatten(), torch.nn.Linear(128, num_classes)\n"
        "    return torch.nn.Sequential(*layers), lambda images: images.float() / 255\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["--teacher", "mine.py:teacher", "--split", "train[:300]", "--allow-weak-teacher", "--out", "s.zarr"]
    assert run(["dump-teacher", *words]) == 0
    assert "no --weights given" in capsys.readouterr().err
    code, _, err = asked(capsys, "s.zarr", "--replay", "8")
    assert code == 2
    assert "mine.py:teacher" in err


def test_distance_is_total_variation_over_the_top_k() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    labels = torch.tensor([0])
    one = encode_topk(logits, labels, topk=4).targets()
    other = encode_topk(logits[:, [1, 0, 2, 3]], labels, topk=4).targets()
    p = logits.softmax(dim=1)[0]
    assert float(distance(one, one)) == pytest.approx(0.0, abs=1e-7)
    assert float(distance(one, other)) == pytest.approx(float(p[0] - p[1]), abs=1e-6)
    assert float(distance(one, other)) > LARGEST_DISTANCE
