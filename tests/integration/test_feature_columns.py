"""`dump-teacher --features`: what the columns hold, that a request finds them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdcache.cli.main import run
from kdcache.derive import DeriveConfig, derive
from kdcache.dump import DumpConfig, dump_teacher
from kdcache.dump_estimate import estimate_dump
from kdcache.errors import ConfigError, IncompatibleError, NumericError
from kdcache.loader.target_store import TargetStore, open_store
from kdcache.merge import MergeConfig, merge
from kdcache.models.features import FeatureCollector
from kdcache.models.preprocess import Preprocessing
from kdcache.sharing import dump_for_team
from kdcache.specs import PreprocessingSpec
from kdcache.store.catalog import Catalog
from kdcache.store.features import feature_columns
from kdcache.store.info import describe
from kdcache.store.reader import open_reader
from kdcache.store.verify import verify_store
from tests.golden.second_reader import read_store

SETTINGS = {"split": "train[0:300]", "teacher": "cnn-16", "init_seed": 3, "allow_weak_teacher": True}
BOTH = "penultimate,features.7"


def _config(out: Path | str, **changes: object) -> DumpConfig:
    return DumpConfig(**{**SETTINGS, "out": str(out), "features": BOTH, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> TargetStore:
    out = tmp_path_factory.mktemp("features") / "exact.zarr"
    dump_teacher(_config(out, feature_dtype="float32", topk="all", precision="exact"))
    return open_store(out)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features") / "half.zarr"
    dump_teacher(_config(out))
    return out


def test_penultimate_features_times_the_stored_head_are_the_stored_opinion(exact: TargetStore) -> None:
    rows = [5, 0, 299, 5]
    features = exact.features("penultimate", rows)
    weight, targets = exact.class_weight, exact.targets(rows)
    assert weight is not None
    bias = torch.from_numpy(np.array(exact._reader.static("class_bias")))
    log_prob = (features @ weight.T + bias).log_softmax(dim=1).gather(1, targets.index)
    torch.testing.assert_close(log_prob, targets.log_prob, atol=5e-3, rtol=5e-3)
    assert torch.equal(features[0], features[3])


def test_half_and_single_precision_hold_the_same_numbers_up_to_rounding(exact: TargetStore, half: Path) -> None:
    rows = torch.arange(300)
    for name in ("penultimate", "features.7"):
        single, rounded = exact.features(name, rows), open_store(half).features(name, rows)
        assert torch.equal(rounded, single.half().float())
    assert [column.field for column in feature_columns(exact.manifest)] == [
        "features32/features_7",
        "features32/penultimate",
    ]


def test_a_second_reader_and_verify_agree_on_the_columns(half: Path) -> None:
    _, arrays = read_store(half)
    assert arrays["features/penultimate"].dtype == np.float16
    np.testing.assert_array_equal(
        arrays["features/penultimate"][0].astype(np.float32), open_store(half).features("penultimate", range(300))
    )
    report = verify_store(half, deep=True)
    assert not report.problems
    facts = describe(half)
    assert facts["arrays"]["features/penultimate"]["bytes_on_disk"] > 300 * 64
    assert facts["bytes_per_row"] * 300 < facts["bytes_on_disk"]


def test_a_request_is_covered_only_by_a_store_with_its_features(half: Path, tmp_path: Path) -> None:
    assert dump_teacher(_config(half)).reused
    assert dump_teacher(_config(half, features="penultimate")).reused
    assert dump_teacher(_config(half, features="")).reused
    with pytest.raises(IncompatibleError, match="another store"):
        dump_teacher(_config(half, features="features.3"))
    with pytest.raises(IncompatibleError, match="another store"):
        dump_teacher(_config(half, feature_dtype="float32"))
    catalog = Catalog(tmp_path / "team")
    made = dump_for_team(_config("", features="penultimate"), catalog)
    assert not made.reused
    assert "penultimate" in made.store
    assert dump_for_team(_config("", features="penultimate"), catalog).reused
    assert not dump_for_team(_config("", features="features.7"), catalog).reused


def test_derive_keeps_the_columns_of_its_rows(half: Path, tmp_path: Path) -> None:
    derive(DeriveConfig(store=str(half), out=str(tmp_path / "part.zarr"), topk=2, rows=(100, 250)))
    part, whole = open_store(tmp_path / "part.zarr"), open_store(half)
    for name in ("penultimate", "features_7"):
        assert torch.equal(part.features(name, range(150)), whole.features(name, range(100, 250)))


def test_memory_mapped_views_give_the_same_features(half: Path, tmp_path: Path) -> None:
    mapped = TargetStore(open_reader(half, ram_budget=0, cache=tmp_path))
    assert torch.equal(mapped.features("penultimate", [3, 1]), open_store(half).features("penultimate", [3, 1]))
    assert mapped.targets([3, 1]).num_classes == 100


def test_dry_run_states_type_and_bytes_before_anything_is_written(tmp_path: Path) -> None:
    estimate = estimate_dump(_config(tmp_path / "none.zarr", features="penultimate"))
    (column,) = estimate.features
    assert (column.dtype, column.shape, column.row_bytes, column.bytes) == ("float16", (64,), 128, 300 * 128)
    assert "features/penultimate: 64 float16, 128 bytes per row and view, 38,400 in all" in str(estimate)
    assert estimate.bytes_per_row > 64
    assert not (tmp_path / "none.zarr").exists()


def test_names_without_a_layer_and_stores_without_the_feature_say_what_there_is(half: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no layer"):
        dump_teacher(_config(tmp_path / "a.zarr", features="layer9"))
    for bad in ("a,,b", "fc,fc", "../x", "features/x", "a.b,a_b"):
        with pytest.raises(ConfigError, match="names of layers"):
            _config(tmp_path / "a.zarr", features=bad)
    with pytest.raises(IncompatibleError, match="holds features_7, penultimate"):
        open_store(half).features("layer3", [0])
    assert not (tmp_path / "a.zarr").exists()


def test_replay_asks_the_teacher_about_the_columns_too(
    exact: TargetStore, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    who = ("--teacher", "cnn-16", "--init-seed", "3")
    assert run(["-q", "verify", exact.location, "--replay", "20", *who]) == 0
    assert "features32/penultimate: largest distance" in capsys.readouterr().out
    assert run(["-q", "verify", str(half), "--replay", "20", *who]) == 0
    assert "features/features_7: largest distance" in capsys.readouterr().out


def test_replay_says_no_to_columns_of_other_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    take = FeatureCollector.take

    def other_rows(self: FeatureCollector, rows: int) -> dict[str, torch.Tensor]:
        return {name: values.roll(1, dims=0) for name, values in take(self, rows).items()}

    with monkeypatch.context() as patched:
        patched.setattr(FeatureCollector, "take", other_rows)
        dump_teacher(_config(tmp_path / "s.zarr", features="penultimate"))
    words = ["-q", "verify", str(tmp_path / "s.zarr"), "--teacher", "cnn-16", "--init-seed", "3"]
    assert run([*words, "--deep"]) == 0, "sealed and sound: only the teacher can tell"
    assert run([*words, "--replay", "20"]) == 1
    assert "features/penultimate differ" in capsys.readouterr().out


def test_merge_says_that_it_keeps_no_columns(half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump_teacher(_config(tmp_path / "other.zarr", init_seed=4, features=""))
    merged = merge(MergeConfig(stores=(str(half), str(tmp_path / "other.zarr")), out=str(tmp_path / "mean.zarr")))
    assert merged.dropped == ("features/features_7", "features/penultimate")
    assert "without features/features_7, features/penultimate" in capsys.readouterr().err
    with pytest.raises(IncompatibleError, match="it holds none"):
        open_store(tmp_path / "mean.zarr").features("penultimate", [0])


class _Loud(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.flat, self.fc = nn.Flatten(), nn.Linear(128, classes)
        nn.init.constant_(self.fc.weight, 1e-8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(self.flat(x) * 1e6)
        return out


def factory(num_classes: int, input_shape: tuple[int, ...]) -> tuple[nn.Module, Preprocessing]:
    """A teacher whose features do not fit float16."""
    torch.manual_seed(0)
    return _Loud(num_classes), Preprocessing(PreprocessingSpec())


def test_features_too_large_for_float16_are_refused_with_their_rows_and_fit_float32(tmp_path: Path) -> None:
    loud = {"teacher": f"{__file__}:factory", "init_seed": None, "features": "penultimate"}
    with pytest.raises(NumericError, match=r"features/penultimate.*too large for its type in \d+ rows: 0, 1"):
        dump_teacher(_config(tmp_path / "half.zarr", **loud))
    dump_teacher(_config(tmp_path / "single.zarr", feature_dtype="float32", **loud))
    assert float(open_store(tmp_path / "single.zarr").features("penultimate", [0]).max()) > 65_504


def test_the_command_takes_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["dump-teacher", "--split", "train[0:300]", "--features", "penultimate", "--feature-dtype", "float32"]
    assert run([*words, "--dry-run", "--json", "--out", str(tmp_path / "s.zarr")]) == 0
    (column,) = json.loads(capsys.readouterr().out)["features"]
    assert column["field"] == "features32/penultimate"
    assert column["dtype"] == "float32"
