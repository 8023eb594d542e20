"""`dump-teacher --samples`: what the draws depend on, what a store keeps of them, and a student trained from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kdcache.cli.main import run
from kdcache.errors import ConfigError
from kdcache.loader import open_store
from kdcache.store.verify import verify_store
from kdcache.store.writer import StoreWriter
from tests.small_store import small_source, write_small_store

SPLIT = ["--split", "train[:300]"]
TWO_VIEWS = ["--augment", "cifar", "--views", "2", "--view-seed", "7", "--allow-weak-teacher"]


def dumped(path: Path, *words: str) -> Path:
    assert run(["-q", "dump-teacher", *SPLIT, "--out", str(path), *words]) == 0
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dumped(tmp_path_factory.mktemp("samples") / "store.zarr", *TWO_VIEWS, "--samples", "16")


def test_a_row_holds_its_draws_and_verify_checks_them(store: Path) -> None:
    assert verify_store(store, deep=True).exit_code == 0
    opened = open_store(store)
    assert opened.manifest.samples == 16
    for view in (0, 1):
        targets = opened.targets(range(300), view, topk=3)
        assert targets.sample_index is not None
        assert targets.sample_count is not None
        assert (targets.sample_count.sum(dim=1) == 16).all()
        assert targets.sample_index.max() < 100
    first, second = (opened.targets(range(300), view).sample_index for view in (0, 1))
    assert not torch.equal(first, second)  # type: ignore[arg-type]


def test_draws_follow_the_teachers_probabilities(store: Path) -> None:
    """Over all rows, the share of draws on the most probable class is the mean of its probability."""
    targets = open_store(store).targets(range(300))
    assert targets.sample_index is not None
    assert targets.sample_count is not None
    first = (targets.sample_count * (targets.sample_index == targets.index[:, :1])).sum() / (300 * 16)
    p = targets.log_prob[:, 0].exp()
    assert float(first) == pytest.approx(
        float(p.mean()), abs=5 * float((p * (1 - p)).mean().sqrt()) / (300 * 16) ** 0.5
    )


def test_draws_do_not_depend_on_the_batch_size(store: Path, tmp_path: Path) -> None:
    other = open_store(dumped(tmp_path / "other.zarr", *TWO_VIEWS, "--samples", "16", "--batch-size", "37"))
    for view in (0, 1):
        one, two = (of.targets(range(300), view) for of in (open_store(store), other))
        # a forward pass of another batch size may differ in the last bit, and a draw on a boundary with it
        assert (one.sample_index != two.sample_index).any(dim=1).sum() <= 1  # type: ignore[union-attr, operator]


def test_a_smaller_number_is_covered_and_none_is_another_request(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for asked, code in (("8", 0), ("0", 0), ("17", 3)):
        words = ["dump-teacher", *SPLIT, *TWO_VIEWS, "--out", str(store), "--samples", asked, "--json"]
        assert run(["-q", *words]) == code
        if code == 0:
            assert json.loads(capsys.readouterr().out)["reused"]


def test_the_dry_run_counts_the_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = []
    for samples in ("0", "16"):
        words = [
            "dump-teacher",
            *SPLIT,
            "--out",
            str(tmp_path / "none.zarr"),
            "--samples",
            samples,
            "--dry-run",
            "--json",
        ]
        assert run(["-q", *words]) == 0
        sizes.append(json.loads(capsys.readouterr().out)["bytes"])
    assert sizes[1] - sizes[0] > 300 * 4
    assert not (tmp_path / "none.zarr").exists()


def test_a_student_is_trained_from_the_draws(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["distill", "--store", str(store), "--method", "rskd", "--epochs", "12", "--out", str(tmp_path / "run")]
    assert run(["-q", *words, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["method"] == "rskd"
    assert figures["accuracy"] > 0.02  # chance is 0.01 with a standard deviation of 0.003
    losses = [json.loads(line)["train_loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


def test_without_draws_the_method_is_refused_with_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = dumped(tmp_path / "plain.zarr")
    capsys.readouterr()
    assert run(["distill", "--store", str(plain), "--method", "rskd", "--out", str(tmp_path / "run")]) == 3
    said = capsys.readouterr().err
    assert "sample_index" in said
    assert "--samples" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda index, count: index.__setitem__((5, 0), 7), "outside"),
        (lambda index, count: count.__setitem__((5, 0), 9), "sum"),
        (lambda index, count: index.__setitem__((5, slice(0, 2)), 3), "rise"),
        (lambda index, count: (count.__setitem__((5, 0), 0), index.__setitem__((5, 0), 0)), "unused"),
    ],
)
def test_draws_that_cannot_be_are_refused_by_the_writer(tmp_path: Path, change: object, what: str) -> None:
    from dataclasses import replace

    made = write_small_store(tmp_path / "model.zarr", small_source(40))
    opened = open_store(made.path)
    codec = replace(opened.manifest.codec, fields=("sample_count", "sample_index"))
    manifest = replace(
        opened.manifest, codec=codec, static_shapes={"sample_count": [4], "sample_index": [4]}, complete=False
    )
    index, count = np.tile(np.array([0, 2, 4, 0]), (40, 1)), np.tile(np.array([1, 2, 1, 0]), (40, 1))
    change(index, count)  # type: ignore[operator]
    targets = opened.targets(range(40))
    columns = {
        "topk_index": targets.index.numpy(),
        "topk_log_prob": targets.log_prob.numpy(),
        "tail": targets.tail.numpy(),
        "label": targets.label.numpy(),
        "label_log_prob": targets.label_log_prob.numpy(),
        "row_digest": opened.row_digests,
        "sample_index": index,
        "sample_count": count,
    }
    with StoreWriter.open(tmp_path / "s.zarr", manifest) as writer:
        (block,) = writer.pending
        with pytest.raises(ConfigError, match=what):
            writer.write_block(block, columns)
