"""Parts and means of real stores, through the library and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdcache.cli.main import run
from kdcache.derive import DeriveConfig, derive, derived_manifest
from kdcache.errors import ConfigError, IncompatibleError
from kdcache.loader.target_store import open_store
from kdcache.merge import MergeConfig, merge
from kdcache.store.precision import round_half
from kdcache.store.reader import open_reader
from kdcache.store.verify import verify_store
from kdcache.targets.similarity import class_means
from kdcache.targets.tail import narrow
from tests.small_store import NUM_CLASSES, small_source, teacher_logits, write_small_store

ROWS = 600


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "parent.zarr"
    return write_small_store(path, small_source(ROWS), topk=5, precision="exact").path


def test_fewer_classes_are_what_narrowing_gives(parent: Path, tmp_path: Path) -> None:
    result = derive(DeriveConfig(store=str(parent), out=str(tmp_path / "part"), topk=2))
    rows = torch.arange(ROWS)
    whole, part = open_store(parent), open_store(tmp_path / "part")
    expected, found = narrow(whole.targets(rows), 2), part.targets(rows)
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.log_prob, expected.log_prob)
    torch.testing.assert_close(found.tail, expected.tail, atol=2e-3, rtol=2e-3)  # float16 again
    assert torch.equal(found.label_log_prob, expected.label_log_prob)
    assert np.array_equal(part.row_digests, whole.row_digests)
    assert part.manifest.store_key == whole.manifest.store_key, "k is not part of the key"
    assert part.manifest.parents[0]["root_digest"] == whole.manifest.root_digest == result.parent
    assert not verify_store(tmp_path / "part", deep=True).problems
    assert torch.equal(part.class_weight, whole.class_weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(("start", "stop"), [(0, 600), (0, 1), (255, 257), (256, 512), (599, 600), (100, 590)])
def test_rows_are_the_same_rows(parent: Path, tmp_path: Path, start: int, stop: int) -> None:
    derive(DeriveConfig(store=str(parent), out=str(tmp_path / "part"), rows=(start, stop)))
    whole, part = open_reader(parent), open_reader(tmp_path / "part")
    assert part.manifest.dataset.split == f"train[{start}:{stop}]"
    assert part.manifest.store_key != whole.manifest.store_key
    for name in ("topk_index", "topk_log_prob", "tail", "label_log_prob"):
        assert np.array_equal(getattr(part.view(0), name), getattr(whole.view(0), name)[start:stop]), name
    assert np.array_equal(part.labels, whole.labels[start:stop])
    assert np.array_equal(part.row_digests, whole.row_digests[start:stop])
    assert not verify_store(tmp_path / "part", deep=True).problems


def test_coarser_numbers_are_rounded_and_finer_ones_refused(parent: Path, tmp_path: Path) -> None:
    coarse = tmp_path / "coarse"
    derive(DeriveConfig(store=str(parent), out=str(coarse), precision="default"))
    expected = round_half(open_reader(parent).view(0).topk_log_prob.astype(np.float32), "default")
    assert np.array_equal(open_reader(coarse).view(0).topk_log_prob, expected)
    with pytest.raises(ConfigError, match="rounded away"):
        derive(DeriveConfig(store=str(coarse), out=str(tmp_path / "fine"), precision="exact"))
    assert not (tmp_path / "fine").exists()


def test_a_derivation_that_stopped_continues_to_the_same_store(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcache.store.writer import StoreWriter

    straight = derive(DeriveConfig(store=str(parent), out=str(tmp_path / "straight"), topk=3))
    real: Callable[..., None] = StoreWriter.write_block

    def fail_at_second(self: StoreWriter, block: Any, columns: Any) -> None:
        if block.block == 1:
            raise KeyboardInterrupt
        real(self, block, columns)

    monkeypatch.setattr(StoreWriter, "write_block", fail_at_second)
    with pytest.raises(KeyboardInterrupt):
        derive(DeriveConfig(store=str(parent), out=str(tmp_path / "broken"), topk=3))
    monkeypatch.setattr(StoreWriter, "write_block", real)
    continued = derive(DeriveConfig(store=str(parent), out=str(tmp_path / "broken"), topk=3))
    assert continued.root_digest == straight.root_digest
    assert 0 < continued.rows_written < ROWS


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--topk", "6"], 2, "expected 1 to 5"),
        (["--views", "2"], 2, "expected 1 to 1"),
        (["--views", "1:2"], 2, "first views"),
        (["--rows", "0:601"], 2, "part of 0:600"),
        (["--rows", "9:9"], 2, "A before B"),
    ],
)
def test_parts_that_are_not_there_are_refused(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, said: str
) -> None:
    assert run(["derive", str(parent), str(tmp_path / "part"), *options]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "part").exists()


def test_nothing_of_a_store_is_not_all_of_it(parent: Path, tmp_path: Path) -> None:
    for config in (DeriveConfig(store=str(parent), out="-", topk=0), DeriveConfig(store=str(parent), out="-", views=0)):
        with pytest.raises(ConfigError, match="0 asked for, expected 1 to"):
            derived_manifest(open_reader(parent), config)


def test_a_store_is_not_derived_onto_itself_or_another(parent: Path, tmp_path: Path) -> None:
    before = open_reader(parent).manifest.root_digest
    assert run(["derive", str(parent), str(parent), "--topk", "2"]) == 2
    write_small_store(tmp_path / "other", small_source(300, seed=5))
    assert run(["derive", str(parent), str(tmp_path / "other"), "--topk", "2"]) == 3
    assert open_reader(parent).manifest.root_digest == before


def test_the_mean_of_two_full_stores_is_exact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = small_source(ROWS)
    one, _ = teacher_logits(source)
    other = one + torch.randn(one.shape, generator=torch.Generator().manual_seed(1))
    for name, logits in (("a", one), ("b", other)):
        write_small_store(tmp_path / name, source, logits=logits, topk=NUM_CLASSES, precision="exact")
    assert run(["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "mean"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["exact"] is True
    assert told["bound_max"] == 0
    truth = (one.softmax(dim=1) + other.softmax(dim=1)) / 2
    store = open_store(tmp_path / "mean")
    kept = store.targets(torch.arange(ROWS))
    dense = torch.zeros(ROWS, NUM_CLASSES).scatter_(1, kept.index, kept.log_prob.exp())
    torch.testing.assert_close(dense, truth, atol=1e-3, rtol=2e-3)
    assert told["quality"]["top1"] == pytest.approx(float((truth.argmax(1) == kept.label).float().mean()), abs=0.005)
    assert [item["relation"] for item in store.manifest.parents] == ["merged", "merged"]
    assert not verify_store(tmp_path / "mean", deep=True).problems


def test_an_approximate_mean_says_so_and_verifies(tmp_path: Path) -> None:
    source = small_source(ROWS)
    one, _ = teacher_logits(source)
    write_small_store(tmp_path / "a", source, logits=one, topk=3)
    write_small_store(tmp_path / "b", source, logits=one.flip(1) * 0.5 + one, topk=4)
    result = merge(MergeConfig(stores=(str(tmp_path / "a"), str(tmp_path / "b")), out=str(tmp_path / "mean")))
    assert not result.exact
    assert 0 < result.bound_mean <= result.bound_max < 1
    assert "approximate" in open_store(tmp_path / "mean").manifest.teacher.training["ensemble"]
    assert open_store(tmp_path / "mean").topk == 3
    assert not verify_store(tmp_path / "mean", deep=True).problems


def test_stores_of_other_rows_are_not_merged(tmp_path: Path) -> None:
    write_small_store(tmp_path / "a", small_source(300))
    write_small_store(tmp_path / "b", small_source(300, seed=3))
    with pytest.raises(IncompatibleError, match=r"cannot be merged:\n    labels: .*\n    raw examples: "):
        merge(MergeConfig(stores=(str(tmp_path / "a"), str(tmp_path / "b")), out=str(tmp_path / "mean")))
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize(("arguments", "code"), [(["{a}"], 2), (["{a}", "{a}"], 2), (["{a}", "{a}/none"], 3)])
def test_what_merge_needs(parent: Path, tmp_path: Path, arguments: list[str], code: int) -> None:
    words = [word.format(a=parent) for word in arguments]
    assert run(["merge", *words, "--out", str(tmp_path / "mean")]) == code
    assert not (tmp_path / "mean").exists()
    assert run(["merge", str(parent), str(parent)]) == 2


@pytest.mark.parametrize("rows", [None, (100, 500)])
def test_class_means_are_those_that_kd_sim_finds_itself(
    parent: Path, tmp_path: Path, rows: tuple[int, int] | None
) -> None:
    derive(DeriveConfig(store=str(parent), out=str(tmp_path / "with"), rows=rows, class_mean=2.0))
    derive(DeriveConfig(store=str(parent), out=str(tmp_path / "without"), rows=rows))
    kept, found = open_store(tmp_path / "with"), open_store(tmp_path / "without")
    mean = kept.class_mean(2.0)
    assert mean is not None
    assert kept.class_mean(1.0) is None, "means of another temperature"
    assert found.class_mean(2.0) is None
    torch.testing.assert_close(mean.sum(dim=1), torch.ones(NUM_CLASSES), atol=1e-4, rtol=0)
    label = torch.arange(NUM_CLASSES)
    torch.testing.assert_close(class_means(kept, 2.0).rows(label), class_means(found, 2.0).rows(label))
    assert not verify_store(tmp_path / "with", deep=True).problems
    part = tmp_path / "part"
    derive(DeriveConfig(store=str(tmp_path / "with"), out=str(part), topk=2))
    again = open_store(part).class_mean(2.0)
    assert again is not None
    assert torch.equal(again, mean), "a smaller k keeps the means of the larger one"
    derive(DeriveConfig(store=str(tmp_path / "with"), out=str(tmp_path / "fewer"), rows=(0, 50)))
    assert open_store(tmp_path / "fewer").class_mean(2.0) is None, "other rows have other means"
