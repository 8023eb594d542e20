"""The second view of a batch: which one it is, that inputs and targets belong together, and what a step makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdcache.cli.main import run
from kdcache.datasets.cards import open_dataset
from kdcache.distill import DistillConfig
from kdcache.distill.plan import DistillPlan
from kdcache.loader import open_store
from kdcache.targets.methods import methods
from kdcache.training.objective import Objective
from kdcache.training.processes import Processes

CPU = Processes(device=torch.device("cpu"))
VIEWS = 3


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "store.zarr"
    words = ["--split", "train[:200]", "--augment", "cifar", "--views", str(VIEWS), "--allow-weak-teacher"]
    assert run(["-q", "dump-teacher", *words, "--out", str(path)]) == 0
    return path


def _plan(store: Path, **changes: object) -> DistillPlan:
    config = DistillConfig(store=str(store), method="mlkd", batch_size=50, out="unused", epochs=3)
    plan = DistillPlan(replace(config, **changes), CPU)  # type: ignore[arg-type]
    plan.prepare()
    return plan


@pytest.mark.parametrize("order", ["cycle", "random"])
def test_the_second_view_is_the_next_by_number_with_its_own_pixels_and_targets(store: Path, order: str) -> None:
    plan, opened = _plan(store, view_order=order), open_store(store)
    feed = plan.feed()
    for epoch in range(4):
        first = plan._shown.of_epoch(epoch)
        second = (first + 1) % VIEWS
        seen = []
        for batch in feed.epoch(epoch):
            assert batch.second is not None
            assert batch.targets is not None
            inputs, targets = batch.second
            seen.append(batch.rows)
            for view, found in ((first, batch.targets), (second, targets)):
                assert torch.equal(found.log_prob, opened.targets(batch.rows, view).log_prob)
            (expected, _) = next(feed._inputs.batches([batch.rows], view=second))
            assert torch.equal(inputs, expected)
            assert not torch.equal(inputs, batch.inputs)
        assert sorted(np.concatenate(seen).tolist()) == list(range(200))


def test_pieces_cut_both_views(store: Path) -> None:
    batch = next(_plan(store).feed().epoch(0))
    pieces = list(batch.pieces(3))
    assert batch.second is not None
    joined = torch.cat([piece.second[0] for piece in pieces if piece.second is not None])
    assert torch.equal(joined, batch.second[0])
    for piece in pieces:
        assert piece.second is not None
        assert len(piece.second[1]) == len(piece.rows)


def test_the_loss_of_a_step_is_the_methods_own_on_both_views(store: Path) -> None:
    plan = _plan(store)
    batch = next(plan.feed().epoch(1))
    assert batch.second is not None
    logits, second = (plan.student.module(inputs) for inputs in (batch.inputs, batch.second[0]))
    method = methods["mlkd"]
    expected = method(logits, batch.targets, batch.labels, second=(second, batch.second[1]))
    found = Objective(method=method)(logits, batch, 0.0, second_logits=second)
    assert torch.equal(found, expected)
    assert float(found.detach()) > float(method(logits, batch.targets, batch.labels).detach())


def test_files_decoded_by_workers_come_in_both_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_dataset("digit-pairs", split="train[:24]")
    for row in range(24):
        folder = tmp_path / "data" / "train" / str(int(source.labels[row]) % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.example(row)[..., 0]).convert("RGB").save(folder / f"{row}.png")
    teacher = tmp_path / "teacher.py"
    teacher.write_text(
        "import torch\n"
        "def factory(num_classes, input_shape):\n"
        "    torch.manual_seed(0)\n"
        "    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 16, num_classes))\n"
        "    return net, lambda image: image / 255.0\n"
    )
    monkeypatch.chdir(tmp_path)
    common = ["--dataset", "imagefolder", "--data-root", str(tmp_path / "data")]
    words = [*common, "--augment", "cifar", "--views", "2", "--teacher", "teacher.py:factory", "--topk", "2"]
    assert run(["-q", "dump-teacher", *words, "--allow-weak-teacher", "--out", "s.zarr"]) == 0
    plan = _plan(
        tmp_path / "s.zarr",
        dataset="imagefolder",
        data_root=tmp_path / "data",
        eval_split="train[:12]",
        student="teacher.py:factory",
        batch_size=8,
        workers=1,
    )
    feed, opened = plan.feed(), open_store(tmp_path / "s.zarr")
    for epoch in range(2):
        for batch in feed.epoch(epoch):
            assert batch.second is not None
            assert not torch.equal(batch.inputs, batch.second[0])
            wanted = opened.targets(batch.rows, (epoch + 1) % 2)
            assert torch.equal(batch.second[1].log_prob, wanted.log_prob)


def test_a_run_learns_and_one_view_is_refused_with_the_option(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["distill", "--method", "mlkd", "--epochs", "2", "--lr", "0.02"]
    assert run(["-q", *words, "--store", str(store), "--out", str(tmp_path / "run")]) == 0
    plain = tmp_path / "plain.zarr"
    assert run(["-q", "dump-teacher", "--split", "train[:200]", "--allow-weak-teacher", "--out", str(plain)]) == 0
    capsys.readouterr()
    assert run([*words, "--store", str(plain), "--out", str(tmp_path / "refused")]) == 3
    assert "dump-teacher --views 2" in capsys.readouterr().err
    assert run([*words, "--store", str(store), "--views", "1", "--out", str(tmp_path / "refused")]) == 2
    assert "two views" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()
