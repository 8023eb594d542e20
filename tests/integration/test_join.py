"""Stores of parts of the rows, put together: what one store of all rows holds, and nothing that is not about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdcache.cli.main import run
from kdcache.datasets.source import ArraySource
from kdcache.derive import DeriveConfig, derive
from kdcache.errors import IncompatibleError
from kdcache.join import JoinConfig, join
from kdcache.store.reader import open_reader
from kdcache.store.verify import verify_store
from kdcache.store.writer import StoreWriter
from tests.faults.test_dump_faults import one_error
from tests.integration.small_world import TRAIN_ROWS, make_world
from tests.small_store import small_source, write_small_store
from tests.store_cases import store_bytes
from tests.token_world import LENGTHS, make_token_world

Captured = pytest.CaptureFixture[str]
ROWS = 700
CUTS = (0, 100, 357, 700)  # blocks are of 256 rows: no cut is at one's end


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "whole.zarr"
    return write_small_store(path, small_source(ROWS), topk=3).path


@pytest.fixture(scope="module")
def parts(whole: Path) -> tuple[str, ...]:
    """Three parts of it, cut by `derive`."""
    stores = []
    for start, stop in pairwise(CUTS):
        stores.append(str(whole.with_name(f"part-{start}.zarr")))
        derive(DeriveConfig(store=str(whole), out=stores[-1], rows=(start, stop)))
    return tuple(stores)


def arrays(store: Path) -> dict[str, bytes]:
    """Every file of a store's arrays but the ledger, which names its store."""
    return {name: data for name, data in store_bytes(store).items() if "/c/" in name and not name.startswith("commit")}


def test_what_derive_cuts_join_puts_together_again(whole: Path, parts: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "joined"
    result = join(JoinConfig(stores=(parts[2], parts[0], parts[1]), out=str(out)))
    assert arrays(out) == arrays(whole)
    assert verify_store(out, deep=True).exit_code == 0
    joined, parent = open_reader(out).manifest, open_reader(whole).manifest
    assert (result.split, result.rows) == (joined.dataset.split, 700) == ("train[0:700]", 700)
    assert joined.dataset.label_digest == parent.dataset.label_digest
    assert joined.store_key != parent.store_key, "nobody has read the examples again"
    assert [parent["rows"] for parent in joined.parents] == [[0, 100], [100, 357], [357, 700]]
    assert [parent["root_digest"] for parent in joined.parents] == list(result.parents)


def test_workers_and_a_second_call_make_the_same_store(
    parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = join(JoinConfig(stores=parts, out=str(tmp_path / "straight")))
    real: Callable[..., None] = StoreWriter.write_block

    def fail_at_second(self: StoreWriter, block: Any, columns: Any) -> None:
        if block.block == 1:
            raise KeyboardInterrupt
        real(self, block, columns)

    monkeypatch.setattr(StoreWriter, "write_block", fail_at_second)
    with pytest.raises(KeyboardInterrupt):
        join(JoinConfig(stores=parts, out=str(tmp_path / "broken")))
    monkeypatch.setattr(StoreWriter, "write_block", real)
    assert join(JoinConfig(stores=parts, out=str(tmp_path / "broken"), workers=2)).root_digest == straight.root_digest
    assert store_bytes(tmp_path / "broken") == store_bytes(tmp_path / "straight")


def test_dumps_of_parts_become_the_store_of_one_dump_and_train_a_student(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut where blocks end; with the data at hand the key is that of one dump, which then has nothing to do."""
    monkeypatch.setenv("KDCACHE_CACHE_DIR", str(tmp_path / "cache"))
    world = make_world(tmp_path)
    assert run([*world.dump(out=str(tmp_path / "whole")), "-q"]) == 0
    names = []
    for start, stop in ((0, 256), (256, TRAIN_ROWS)):
        names.append(str(tmp_path / f"part-{start}"))
        assert run([*world.dump(out=names[-1]), "--split", f"train[{start}:{stop}]", "-q"]) == 0
    out = tmp_path / "joined"
    words = ["join", *names, "--out", str(out), "--dataset", "npz", "--data-root", str(world.data)]
    capsys.readouterr()
    assert run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["split"] == "train"
    assert arrays(out) == arrays(tmp_path / "whole")
    assert open_reader(out).manifest.store_key == open_reader(tmp_path / "whole").manifest.store_key
    assert run(world.dump("good", out=str(out))) == 0
    assert "no teacher was built" in capsys.readouterr().err
    assert run([*world.distill("--seed", "1", "--out", str(tmp_path / "run"), store=str(out)), "-q"]) == 0


def test_views_of_parts_are_replayed_from_what_they_recorded(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views are drawn by the part's row numbers: a student of the joined store sees what the teacher saw."""
    monkeypatch.setenv("KDCACHE_CACHE_DIR", str(tmp_path / "cache"))
    world, names = make_world(tmp_path), []
    for start, stop in ((0, 300), (300, TRAIN_ROWS)):
        names.append(str(tmp_path / f"part-{start}"))
        views = ("--views", "2", "--augment", "cifar", "--allow-weak-teacher")
        assert run([*world.dump(out=names[-1]), "--split", f"train[{start}:{stop}]", *views, "-q"]) == 0
    out = str(tmp_path / "joined")
    data = ["--dataset", "npz", "--data-root", str(world.data)]
    assert run(["join", *names, "--out", out, *data]) == 2
    one_error(capsys.readouterr().err, "drawn by the part's own row numbers", "leave --dataset out")
    assert run(["join", *names, "--out", out, "-q"]) == 0
    manifest = open_reader(out).manifest
    assert max(canary["row"] for canary in manifest.views.canaries) == TRAIN_ROWS - 1
    assert len(manifest.views.canaries) == 16
    capsys.readouterr()
    assert run(["verify", out, "--views", *data]) == 0
    told = capsys.readouterr()
    assert "16 canary views replayed: the same pixels" in told.out + told.err
    assert "row numbers its views were drawn by" in told.out + told.err
    teacher = ["--teacher", world.teacher("good")]
    assert run(["verify", out, "--replay", "9", *teacher, *data]) == 3
    one_error(capsys.readouterr().err, "asked about other views than it was", "verify PARENT")
    assert run([*world.distill("--seed", "1", "--out", str(tmp_path / "run"), store=out), "-q"]) == 0


def test_token_rows_are_joined_at_the_ends_of_sequences(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_CACHE_DIR", str(tmp_path / "cache"))
    corpus = make_token_world(tmp_path, masked=True)
    words = ["dump-teacher", "--dataset", "tokens", "--data-root", str(corpus), "-q", "--allow-weak-teacher"]
    words += ["--teacher", f"{tmp_path / 'teachers.py'}:sums", "--topk", "5", "--batch-size", "64"]
    rows = sum(LENGTHS["train"]) - len(LENGTHS["train"])
    between = LENGTHS["train"][0] + LENGTHS["train"][1] - 2  # after the second sequence
    splits = {"whole": "train", "a": f"train[0:{between}]", "b": f"train[{between}:{rows}]"}
    splits |= {"cut": "train[0:500]", "rest": f"train[500:{rows}]"}
    for name, split in splits.items():
        assert run([*words, "--split", split, "--out", str(tmp_path / name)]) == 0
    data = ["--data-root", str(corpus)]
    out = tmp_path / "joined"
    assert run(["join", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out), *data, "-q"]) == 0
    joined, one = open_reader(out), open_reader(tmp_path / "whole")
    assert joined.manifest.store_key == one.manifest.store_key
    assert np.array_equal(joined.static("sequence_offsets"), one.static("sequence_offsets"))
    assert np.array_equal(joined.row_array("mask"), one.row_array("mask"))
    assert np.array_equal(joined.view(0).topk_index, one.view(0).topk_index)
    capsys.readouterr()
    assert run(["join", str(tmp_path / "cut"), str(tmp_path / "rest"), "--out", str(tmp_path / "no"), *data]) == 3
    one_error(capsys.readouterr().err, "cut sequences", "begin and end with sequences")


def test_data_that_the_parts_were_not_made_from_is_refused(
    parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small_source(ROWS)
    other = ArraySource(
        source.examples.copy(), source.labels, name=source.name, split="train", num_classes=source.num_classes
    )
    other.examples[400, 3, 3, 0] ^= 1
    config = JoinConfig(stores=parts, out=str(tmp_path / "joined"), dataset="patterns")
    monkeypatch.setattr("kdcache.join.open_dataset", lambda *_, **__: other)
    with pytest.raises(IncompatibleError, match="raw examples or labels differ"):
        join(config)
    assert not (tmp_path / "joined").exists()
    monkeypatch.setattr("kdcache.join.open_dataset", lambda *_, **__: source)
    assert join(config).split == "train", "parts that derive cut name their rows of the whole data set"


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"rows": "150:250"}, "a gap between rows 0:100"),
        ({"rows": "50:150"}, "an overlap between rows 0:100"),
        ({"rows": "100:200", "topk": 2}, "top-k: 3, but 2 in"),
        ({"rows": "100:200", "precision": "exact"}, "precision: default, but exact in"),
        ({"rows": "100:200", "state_digest": "2" * 64}, "teacher: linear"),
        ({"rows": "100:200", "name": "others"}, "data set: patterns (train), but others (train) in"),
        ({"rows": "100:200", "with_weight": False}, "fields: "),
        ({"rows": "100:201"}, "expected rows NAME[A:B]"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    tmp_path: Path, capsys: Captured, second: dict[str, Any], said: str
) -> None:
    for name, settings in (("a", {"rows": "0:100"}), ("b", second)):
        kind: dict[str, Any] = {"name": "patterns", **settings}
        source = small_source(100)
        source.name, source.split = kind.pop("name"), f"train[{kind.pop('rows')}]"
        write_small_store(tmp_path / name, source, **kind)
    assert run(["join", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")]) == 3
    one_error(capsys.readouterr().err, said)
    assert not (tmp_path / "out").exists()


def test_what_join_needs(parts: tuple[str, ...], tmp_path: Path, capsys: Captured) -> None:
    assert run(["join", *parts]) == 2
    assert run(["join", parts[0], parts[0], "--out", str(tmp_path / "out")]) == 2
    assert run(["join", parts[0], str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 3
    capsys.readouterr()
    assert run(["merge", parts[0], parts[1], "--out", str(tmp_path / "out")]) == 3
    one_error(capsys.readouterr().err, "cannot be merged", "kdcache join")
    assert not (tmp_path / "out").exists()
