"""A student of stored views: which it sees, in which order, and that they are the teacher's, whatever made them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdcache.cli.main import run
from kdcache.datasets.source import ArraySource
from kdcache.distill import DistillConfig, distill, views
from kdcache.dump import DumpConfig, dump_teacher
from kdcache.errors import ConfigError, IncompatibleError
from kdcache.loader import TargetStore, open_store
from kdcache.models.weights import read_weights
from kdcache.views.canary import view_libraries
from tests.integration.distill_setup import write_data

NOISY = """
import torch
def factory():
    return lambda image, generator: image + torch.randint(0, 9, image.shape, generator=generator, dtype=torch.uint8)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with data and a store of four views of every row."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCACHE_DATA_ROOT", str(tmp_path))
    monkeypatch.setenv("KDCACHE_CACHE_DIR", str(tmp_path / "cache"))
    write_data(tmp_path, rows=64)
    _dump(tmp_path, "store.zarr", views=4)
    return tmp_path


def _dump(work: Path, name: str, **changes: object) -> None:
    base = DumpConfig(
        dataset=str(work / "patterns.toml"),
        teacher="mlp-8",
        init_seed=0,
        topk=3,
        augment="cifar",
        out=str(work / name),
        allow_weak_teacher=True,
    )
    dump_teacher(replace(base, **changes))  # type: ignore[arg-type]


def _config(work: Path, **changes: object) -> DistillConfig:
    base = DistillConfig(store=str(work / "store.zarr"), student="mlp-8", method="kd", epochs=8, out=str(work / "run"))
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The view of every step, as the store is asked for its targets; 64 rows in batches of 32: two steps an epoch."""
    asked: list[int] = []
    true_targets = TargetStore.targets

    def targets(self: TargetStore, rows: torch.Tensor, view: int = 0, topk: int | None = None) -> object:
        asked.append(view)
        return true_targets(self, rows, view, topk)

    monkeypatch.setattr(TargetStore, "targets", targets)
    return asked


def _asked(*words: str) -> int:
    return run(["-q", "distill", "--student", "mlp-8", "--method", "kd", "--epochs", "8", "--out", "run", *words])


def test_the_student_may_use_fewer_views_than_stored(
    work: Path, shown: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _asked("--store", "store.zarr", "--views", "3", "--json") == 0
    assert shown[::2] == shown[1::2] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert json.loads(capsys.readouterr().out)["views"] == 3


def test_random_order_shows_every_view_once_in_v_epochs_and_depends_on_the_seed(work: Path, shown: list[int]) -> None:
    orders = []
    for seed in ("0", "0", "1"):
        shown.clear()
        assert (
            _asked("--store", "store.zarr", "--view-order", "random", "--seed", seed, "--out", f"run{len(orders)}") == 0
        )
        orders.append(shown[::2])
        assert [sorted(part) for part in (orders[-1][:4], orders[-1][4:])] == [[0, 1, 2, 3]] * 2
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != [0, 1, 2, 3] * 2


def test_the_first_views_are_the_store_that_was_dumped_with_fewer(work: Path) -> None:
    """Same weights bit for bit, so a smaller V can be tried without another dump."""
    _dump(work, "two.zarr", views=2)
    runs = [_config(work, views=2), _config(work, store=str(work / "two.zarr"), out=str(work / "two"))]
    one, other = (read_weights(distill(config).folder / "last.safetensors").state for config in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"views": 5}, IncompatibleError, "5 views asked for, the store holds 4"),
        ({"views": 0}, ConfigError, "views: expected at least 1"),
        ({"view_order": "shuffled"}, ConfigError, "expected 'cycle' or 'random'"),
        ({"augment": "imagenet"}, ConfigError, "holds 4 views of 'cifar'"),
        ({"augment": "noisy.py:factory"}, ConfigError, "holds 4 views of 'cifar'"),
    ],
    ids=str,
)
def test_views_the_store_does_not_hold_are_refused(
    work: Path, changes: dict[str, object], error: type[Exception], says: str
) -> None:
    (work / "noisy.py").write_text(NOISY)
    with pytest.raises(error, match=says):
        distill(_config(work, **changes))
    assert not (work / "run").exists()


def test_settings_left_at_their_defaults_are_not_kept_so_that_older_runs_resume(work: Path) -> None:
    distill(_config(work))
    kept = json.loads((work / "run" / "config.json").read_text())
    assert {"views", "view_order"}.isdisjoint(kept)
    with pytest.raises(IncompatibleError, match="view_order"):
        distill(_config(work, resume=True, view_order="random"))


def test_a_users_transform_is_named_again_by_the_student(work: Path) -> None:
    (work / "noisy.py").write_text(NOISY)
    _dump(work, "noisy.zarr", augment="noisy.py:factory", views=2)
    config = _config(work, store=str(work / "noisy.zarr"), epochs=1)
    with pytest.raises(IncompatibleError, match=r"noisy\.py:factory, which was not given"):
        distill(config)
    assert distill(replace(config, augment="noisy.py:factory")).figures["steps"] == 2


def test_a_students_own_augmentation_over_plain_targets_is_warned_about(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _dump(work, "plain.zarr", augment="none")
    config = _config(work, store=str(work / "plain.zarr"), augment="cifar", epochs=1)
    distill(config)
    assert "Beyer et al. 2022" in capsys.readouterr().err
    distill(replace(config, method="ce", out=str(work / "ce")))
    assert "Beyer" not in capsys.readouterr().err


def test_canaries_say_which_path_made_them_and_any_path_may_replay_them(work: Path) -> None:
    spec = open_store(work / "store.zarr").manifest.views
    assert spec.libraries == view_libraries("cpu")  # an array's crops and flips are one batch
    assert spec.libraries["path"] == "batch on cpu"
    card = str(work / "patterns.toml")
    (work / "files.py").write_text(
        "from kdcache.datasets.cards import open_dataset\n"
        "class Files:\n"  # not an array in memory: read and augmented one by one
        "    identity = 'full'\n"
        "    def __init__(self, source): self.source = source\n"
        "    def __len__(self): return len(self.source)\n"
        "    def __getattr__(self, name): return getattr(self.source, name)\n"
        "    def raw(self, row): return self.source.raw(row)\n"
        "    def example(self, row): return self.source.example(row)\n"
        f"def factory(split, root): return Files(open_dataset({card!r}, split=split, root=root))\n"
    )
    _dump(work, "single.zarr", dataset=f"{work / 'files.py'}:factory", views=4)
    single = open_store(work / "single.zarr").manifest.views
    assert single.libraries["path"] == "single"
    assert single.canaries == spec.canaries  # the same pixels, digest for digest
    for store, data in (("single.zarr", "patterns.toml"), ("store.zarr", "files.py:factory")):
        config = _config(work, store=str(work / store), dataset=str(work / data), out=str(work / f"run-{store}"))
        assert distill(replace(config, epochs=1)).figures["epochs"] == 1


def test_drifted_views_are_refused_or_trained_on_with_a_warning(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dimmed(source: ArraySource, row: int) -> torch.Tensor:
        return torch.from_numpy(source.examples[row] // 2).permute(2, 0, 1).contiguous()

    monkeypatch.setattr(views, "example_tensor", dimmed)
    with pytest.raises(IncompatibleError, match="drifted") as caught:
        distill(_config(work))
    assert "--allow-view-drift" in caught.value.hint
    assert not (work / "run").exists()
    assert _asked("--store", "store.zarr", "--allow-view-drift", "--epochs", "1") == 0
    capsys.readouterr()
    distill(_config(work, allow_view_drift=True, epochs=1, out=str(work / "drifted")))
    assert "views drifted" in capsys.readouterr().err
