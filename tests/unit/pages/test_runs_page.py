"""The page about runs: curves are means over seeds, torn lines and hostile names do no harm, bins are pooled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdcache.errors import NotFoundError
from kdcache.pages.runs_page import pooled_bins, read_epochs, runs_page
from kdcache.pages.wording import bytes_text, place_name
from tests.unit.html.test_markup import HOSTILE, read

SHARED = {
    "student": "mlp-32", "dataset": "d", "split": "train", "eval_split": "test", "epochs": 3, "batch_size": 64,
    "content_digest": "c", "nll": 0.5, "ece": 0.05, "agreement": None, "seconds": 2.0, "options": {}, "store_key": "k",
}  # fmt: skip
BINS = {"edges": [0, 0.5, 1], "confidence": [None, 0.9], "accuracy": [None, 0.8], "count": [0, 40]}


def _run(root: Path, method: str, seed: int, accuracy: float, **changes: Any) -> Path:
    folder = root / f"{len(list(root.iterdir()))}"
    folder.mkdir(parents=True)
    content = {**SHARED, "method": method, "seed": seed, "accuracy": accuracy, **changes}
    (folder / "result.json").write_text(json.dumps(content))
    lines = [{"epoch": epoch, "test_top1": accuracy * epoch / 3, "train_loss": 3.0 / epoch} for epoch in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _anchors(source: str) -> set[str | None]:
    return {dict(attributes).get("id") for tag, attributes in read(source).tags if tag == "section"}


def test_methods_curves_and_calibration_of_runs_are_drawn(tmp_path: Path) -> None:
    for seed, (plain, taught) in enumerate([(0.80, 0.83), (0.84, 0.88), (0.82, 0.87)]):
        _run(tmp_path, "ce", seed, plain)
        _run(tmp_path, "kd", seed, taught, temperature=4.0, calibration=BINS)
    source = runs_page([tmp_path])
    found = read(source)
    assert _anchors(source) == {"methods", "training", "calibration", "runs", "setting"}
    for part in ("86.00%", "+4.00", f"Accuracy on {SHARED['eval_split']}", "Training loss"):
        assert part in found.words
    assert "Agreement" not in found.words  # no run measured it
    tips = [dict(attributes).get("data-tip") or "" for _, attributes in found.tags]
    assert "epoch: 3\nkd: 86.00%\nce: 82.00%" in tips
    assert any("sure 90%, right 80%\n120 rows" in tip for tip in tips)


def test_a_single_evaluation_is_a_number_not_a_curve(tmp_path: Path) -> None:
    folder = _run(tmp_path, "kd", 0, 0.5)
    (folder / "metrics.jsonl").write_text('{"epoch": 3, "test_top1": 0.5}\n')
    assert _anchors(runs_page([tmp_path])) == {"methods", "runs", "setting"}


def test_one_run_without_metrics_is_a_page_without_curves(tmp_path: Path) -> None:
    (_run(tmp_path, "kd", 0, 0.5) / "metrics.jsonl").unlink()
    assert _anchors(runs_page([tmp_path])) == {"methods", "runs", "setting"}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_of_runs_stay_text(tmp_path: Path, name: str) -> None:
    hostile = {"student": name, "dataset": name, "store": name, "options": {}}
    _run(tmp_path, name, 0, 0.5, **hostile)
    _run(tmp_path, "kd", 0, 0.6, **{**hostile, "options": {"tail": name}})
    _run(tmp_path, "kd", 1, 0.6, **hostile)
    found = read(runs_page([tmp_path]))
    assert sum(tag == "script" for tag, _ in found.tags) == 1
    assert not [key for _, attributes in found.tags for key, _ in attributes if key.startswith("on")]
    assert not [tag for tag, _ in found.tags if tag in ("img", "b")]
    assert name in found.words


def test_torn_and_foreign_lines_are_passed_over_and_repeated_epochs_counted_once(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"epoch": 1, "a": 1}\n{"epoch": 2, "a": 1}\n[]\n{"epoch": "x"}\n\xff\n{"epoch": 2, "a": 9}\n{"epoch": 3, "a"'
    )
    assert read_epochs(tmp_path) == ({"epoch": 1, "a": 1}, {"epoch": 2, "a": 9})


def test_an_epoch_that_only_some_seeds_reached_is_left_out(tmp_path: Path) -> None:
    _run(tmp_path, "kd", 0, 0.6)
    longer = _run(tmp_path, "kd", 1, 0.6)
    with (longer / "metrics.jsonl").open("a") as stream:
        stream.write('{"epoch": 4, "test_top1": 1.0}\n')
    tips = [dict(attributes).get("data-tip") or "" for _, attributes in read(runs_page([tmp_path])).tags]
    assert any(tip.startswith("epoch: 3") for tip in tips)
    assert not any(tip.startswith("epoch: 4") for tip in tips)


def test_bins_of_several_seeds_are_weighed_by_their_rows() -> None:
    other = {"confidence": [0.4, 0.7], "accuracy": [0.5, 0.6], "count": [10, 120]}
    found = pooled_bins([BINS, other, None, {"confidence": [1]}, {"confidence": ["x"], "accuracy": [1], "count": [1]}])
    assert found[0] == pytest.approx((0.4, 0.5, 10))
    assert found[1] == pytest.approx((0.75, 0.65, 160))
    assert pooled_bins([None]) == []


def test_places_lose_folders_and_credentials() -> None:
    assert place_name("/srv/someone/team/store.zarr") == "store.zarr"
    assert place_name("s3://key:secret@bucket/a/store.zarr?X-Signature=1") == "s3://bucket/a/store.zarr"
    assert [bytes_text(size) for size in (0, 999, 1234, 5.3e6, 2e12, 3e15)] == [
        "0 B", "999 B", "1.2 kB", "5.3 MB", "2.0 TB", "3000.0 TB"
    ]  # fmt: skip


def test_a_folder_without_runs_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no finished run"):
        runs_page([tmp_path])
