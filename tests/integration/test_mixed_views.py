"""Mixup and cutmix from the command line: what the store holds, who may learn from it, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kdcache.cli.main import run
from kdcache.datasets.cards import open_dataset
from kdcache.distill import DistillConfig, distill
from kdcache.dump import DumpConfig, dump_teacher
from kdcache.errors import IncompatibleError
from kdcache.loader import AttachedDataset, DistillLoader, InputReader, open_store
from kdcache.loader.target_store import TargetStore
from kdcache.models.registry import build_model
from kdcache.seeding import torch_seed_for
from kdcache.store.reader import open_reader
from kdcache.store.verify import verify_store
from kdcache.targets.methods import methods
from kdcache.targets.tail import narrow
from kdcache.views.mixing import recorded_mixing
from kdcache.views.policy import ViewPolicy
from tests.golden.second_reader import read_store
from tests.integration.distill_setup import write_data

POLICY = """
name = "mixed"
[[ops]]
op = "pad-crop"
padding = 1
[[ops]]
op = "horizontal-flip"
[[ops]]
op = "mixup-or-cutmix"
probability = 0.9
"""
ROWS = 300


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a policy and a store of two mixed views, made once."""
    folder = tmp_path_factory.mktemp("mixed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCACHE_DATA_ROOT", str(folder))
        patch.setenv("KDCACHE_CACHE_DIR", str(folder / "cache"))
        write_data(folder, rows=ROWS)
        (folder / "mixed.toml").write_text(POLICY)
        dump_teacher(_dump(folder, views=2))
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCACHE_DATA_ROOT", str(made))
    monkeypatch.setenv("KDCACHE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def _dump(folder: Path, *, views: int, out: str = "", augment: str = "mixed.toml") -> DumpConfig:
    return DumpConfig(
        dataset=str(folder / "patterns.toml"),
        teacher="mlp-16",
        init_seed=0,
        topk=3,
        views=views,
        augment=str(folder / augment),
        batch_size=64,
        out=out or str(folder / "store.zarr"),
        allow_weak_teacher=True,
    )


def _reader(store: TargetStore, *, workers: int = 0) -> InputReader:
    manifest = store.manifest
    source = open_dataset(manifest.dataset.card, split="train")
    built = build_model("mlp-16", num_classes=7, input_shape=(1, 6, 6))
    policy = ViewPolicy.from_spec(manifest.views)
    return InputReader(source, built.preprocessing, policy, workers=workers, stored_params=store.view_params)


def _teacher() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed_for("teacher-init", 0))
        return build_model("mlp-16", num_classes=7, input_shape=(1, 6, 6)).module.eval()


def test_the_teacher_saw_the_mix_and_both_labels_are_there(work: Path) -> None:
    store = open_store(work / "store.zarr")
    assert {"partner_label_log_prob", "view_params"} <= set(store.manifest.codec.fields)
    loader, teacher = DistillLoader(_reader(store), store, batch_size=50, shuffle=False), _teacher()
    for view in range(2):
        for rows, (inputs, labels, targets) in zip(loader.rows(view), loader, strict=True):
            mix = recorded_mixing(store.manifest.views, store.view_params(rows, view), num_rows=ROWS)
            assert targets.mix is not None
            assert targets.mix.partner_log_prob is not None
            assert targets.mix.partner_label.tolist() == store.labels[mix.partner].tolist()
            np.testing.assert_array_equal(targets.mix.weight.numpy(), mix.weight)
            with torch.inference_mode():
                log_prob = teacher(inputs).log_softmax(dim=1)
            torch.testing.assert_close(targets.log_prob, log_prob.gather(1, targets.index), rtol=0.01, atol=1e-3)
            for label, kept in (
                (labels, targets.label_log_prob),
                (targets.mix.partner_label, targets.mix.partner_log_prob),
            ):
                torch.testing.assert_close(kept, log_prob.gather(1, label[:, None])[:, 0], rtol=0.01, atol=1e-3)


def test_the_store_is_format_1_to_any_reader(work: Path) -> None:
    manifest, arrays = read_store(work / "store.zarr")
    assert arrays["partner_label_log_prob"].shape == (2, ROWS)
    assert verify_store(work / "store.zarr", deep=True).exit_code == 0
    assert all(canary["partner_outcome"] or not canary["partner_size"] for canary in manifest["views"]["canaries"])
    assert any(canary["partner_outcome"] for canary in manifest["views"]["canaries"])


@pytest.mark.parametrize("method", ["ce", "kd", "kd-topk", "kd-pt", "kd-sim", "dist", "ctkd"])
def test_students_learn_from_mixed_views(work: Path, method: str) -> None:
    result = distill(DistillConfig(store="store.zarr", method=method, epochs=2, out="run"))
    assert result.figures["train_loss"] > 0
    assert 0 < result.figures["train_accuracy"] < 1


def test_equal_weights_whatever_the_workers_and_the_session(work: Path) -> None:
    for name, workers in (("a", 0), ("b", 1)):
        distill(DistillConfig(store="store.zarr", epochs=2, workers=workers, out=name))
    assert (work / "a/last.safetensors").read_bytes() == (work / "b/last.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--method", "dkd"], "method dkd is not defined on mixed views"),
        (["--method", "nkd"], "partner's class"),
        (["--method", "lskd", "--set", "base=dkd"], "base=dkd"),
        (["--method", "kd-sim", "--set", "similarity=mean"], "mix two classes"),
    ],
)
def test_methods_that_set_the_label_apart_are_refused_before_anything(
    work: Path, more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["distill", "--store", "store.zarr", "--epochs", "1", "--out", "run", *more]) == 3
    assert says in capsys.readouterr().err
    assert not (work / "run").exists()


def test_the_method_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "dkd"]) == 0
    assert "refused: it sets the label apart" in capsys.readouterr().out
    assert run(["methods", "--json"]) == 0
    table = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert table["nkd"]["refused_on_mixed"]
    assert not table["kd-pt"]["refused_on_mixed"]
    assert "each of the two labels" in table["kd-pt"]["on_mixed"]


def test_the_teacher_and_the_views_say_the_same_again(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = ["--teacher", "mlp-16", "--init-seed", "0"]
    assert run(["-q", "verify", "store.zarr", "--views", "--replay", "60", "--json", *teacher]) == 0
    views, rows = json.loads(capsys.readouterr().out)["again"]
    assert views["ok"]
    assert "8 canary views replayed: the same pixels" in views["said"]
    assert rows["ok"]


def test_growing_by_a_view_keeps_the_old_ones(work: Path) -> None:
    before = open_reader(work / "store.zarr")
    kept = [before.view(view).topk_log_prob.copy() for view in range(2)]
    first = before.view(1).optional["partner_label_log_prob"].copy()
    result = dump_teacher(_dump(work, views=3))
    assert result.rows_written == ROWS
    after = open_reader(work / "store.zarr")
    for view in range(2):
        np.testing.assert_array_equal(after.view(view).topk_log_prob, kept[view])
    np.testing.assert_array_equal(after.view(1).optional["partner_label_log_prob"], first)
    assert np.isfinite(after.view(2).optional["partner_label_log_prob"]).all()
    distill(DistillConfig(store="store.zarr", epochs=3, out="run"))


def test_fewer_classes_keep_the_second_labels(work: Path) -> None:
    store, rows = open_store(work / "store.zarr"), torch.arange(40)
    whole, fewer = store.targets(rows, 1), store.targets(rows, 1, topk=1)
    assert whole.mix is not None
    assert fewer.mix is not None
    assert torch.equal(whole.mix.partner_label, fewer.mix.partner_label)
    torch.testing.assert_close(fewer.tail, narrow(whole, 1).tail)
    assert run(["-q", "derive", "store.zarr", "small.zarr", "--topk", "2"]) == 0
    small = open_store(work / "small.zarr").targets(rows, 1)
    assert small.mix is not None
    assert torch.equal(small.mix.weight, whole.mix.weight)
    assert run(["-q", "derive", "store.zarr", "part.zarr", "--rows", "0:100"]) == 3


def test_a_view_too_large_for_memory_has_the_same_second_labels(work: Path) -> None:
    rows = torch.tensor([3, 299, 0, 3])
    mapped = TargetStore(open_reader(work / "store.zarr", ram_budget=1, cache=work / "cache"))
    found, wanted = mapped.targets(rows, 1), open_store(work / "store.zarr").targets(rows, 1)
    assert found.mix is not None
    assert wanted.mix is not None
    assert torch.equal(found.mix.partner_label, wanted.mix.partner_label)
    assert torch.equal(found.mix.weight, wanted.mix.weight)
    torch.testing.assert_close(found.mix.partner_log_prob, wanted.mix.partner_log_prob)


def test_in_a_loop_of_ones_own_mixed_views_are_replayed_or_refused(work: Path) -> None:
    store = open_store(work / "store.zarr")
    source = open_dataset(store.manifest.dataset.card, split="train")
    built = build_model("mlp-16", num_classes=7, input_shape=(1, 6, 6))
    pairs = [(torch.from_numpy(source.example(row)), int(source.labels[row])) for row in range(ROWS)]
    with pytest.raises(IncompatibleError, match="mix two examples") as caught:
        AttachedDataset(pairs, store)
    assert "InputReader" in caught.value.hint
    with pytest.raises(IncompatibleError, match="transforms of its own"):
        DistillLoader(pairs, store, batch_size=10)
    other = ViewPolicy.named("mixed.toml", seed=1)
    for policy, says in ((None, "op 2: the store has"), (other, "seed: the store has 0, asked for 1")):
        with pytest.raises(IncompatibleError, match=says):
            DistillLoader(InputReader(source, built.preprocessing, policy), store, batch_size=10)
    inputs, labels, targets = next(iter(DistillLoader(_reader(store), store, batch_size=10)))
    loss = methods["kd-pt"](built.module(inputs), targets, labels)
    assert loss.shape == (10,)
