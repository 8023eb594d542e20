"""The comparison of runs: grouping, pairing by seed, the t-interval, and refusing unlike runs."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest

from kdcache.errors import ConfigError, NotFoundError
from kdcache.report import compare_runs, find_runs, t_interval, text_table

SHARED = {
    "student": "mlp-32", "dataset": "d", "split": "train", "eval_split": "test", "epochs": 3, "batch_size": 64,
    "content_digest": "c", "nll": 0.5, "ece": 0.05, "agreement": None, "seconds": 2.0, "options": {}, "store_key": "k",
}  # fmt: skip


def _run(root: Path, method: str, seed: int, accuracy: float, **changes: object) -> Path:
    folder = root / f"{method}-{seed}-{len(list(root.iterdir()))}"
    folder.mkdir()
    content = {**SHARED, "method": method, "seed": seed, "accuracy": accuracy, **changes}
    (folder / "result.json").write_text(json.dumps(content))
    return folder


def test_t_interval_is_the_textbook_one() -> None:
    low, high = t_interval([1.0, 2.0, 3.0, 4.0]) or (0.0, 0.0)
    half = 3.182 * math.sqrt(5 / 3) / 2  # t(0.975, 3 degrees) * s / sqrt(4)
    assert (low, high) == pytest.approx((2.5 - half, 2.5 + half))
    assert t_interval([1.0]) is None
    wide = t_interval([0.0, 1.0] * 50) or (0.0, 0.0)
    assert wide[1] - wide[0] == pytest.approx(2 * 1.984 * 0.50252 / 10, rel=2e-3)  # t(0.975, 99 degrees)


def test_seeds_are_paired_with_cross_entropy_of_the_same_seed(tmp_path: Path) -> None:
    for seed, (plain, taught) in enumerate([(0.80, 0.83), (0.84, 0.88), (0.82, 0.87)]):
        _run(tmp_path, "ce", seed, plain)
        _run(tmp_path, "kd", seed, taught, temperature=4.0, agreement=0.9)
    _run(tmp_path, "kd", 9, 0.99, temperature=4.0)  # no ce with this seed: counts for the mean, not for the gain
    ce, kd = compare_runs([tmp_path])
    assert (ce.method, ce.runs, ce.gain) == ("ce", 3, None)
    assert ce.accuracy == pytest.approx(0.82)
    assert ce.accuracy_sd == pytest.approx(0.02)
    assert (kd.runs, kd.pairs) == (4, 3)
    assert kd.gain == pytest.approx(0.04)
    assert (kd.gain_low, kd.gain_high) == pytest.approx((0.04 - 4.303 * 0.01 / 3**0.5, 0.04 + 4.303 * 0.01 / 3**0.5))
    assert kd.agreement == pytest.approx(0.9)
    assert kd.train_agreement is None
    table = text_table([ce, kd])
    assert len({line.index("n") for line in table.splitlines()[:1]}) == 1
    assert "+4.00 [" in table


def test_agreement_on_training_rows_is_never_shown_as_agreement(tmp_path: Path) -> None:
    _run(tmp_path, "kd", 0, 0.8, agreement=None, train_agreement=0.7, nll=0.5, ece=0.02)
    _run(tmp_path, "kd", 1, 0.8, agreement=0.6, agreement_on="test", train_agreement=0.8, nll=0.7, ece=0.04)
    _run(tmp_path, "kd", 2, 0.8, agreement=0.9, agreement_on="train")  # as runs of before they were kept apart
    (row,) = compare_runs([tmp_path])
    assert row.agreement == pytest.approx(0.6)
    assert row.train_agreement == pytest.approx((0.7 + 0.8 + 0.9) / 3)
    assert (row.nll, row.nll_sd) == pytest.approx((1.7 / 3, statistics.stdev([0.5, 0.7, 0.5])))
    assert (row.ece, row.ece_sd) == pytest.approx((0.11 / 3, statistics.stdev([0.02, 0.04, 0.05])))
    assert f"{row.nll:.3f} +-{row.nll_sd:.3f}" in text_table([row])


def test_settings_that_differ_make_groups_of_their_own(tmp_path: Path) -> None:
    _run(tmp_path, "kd", 0, 0.8, temperature=2.0, options={"tail": "ghost"})
    _run(tmp_path, "kd", 1, 0.8, temperature=4.0, options={"tail": "ghost"})
    assert {row.label for row in compare_runs([tmp_path])} == {"kd T=2", "kd T=4"}


def test_a_store_is_named_only_where_it_is_not_the_usual_one_and_was_read(tmp_path: Path) -> None:
    for seed in (0, 1):
        _run(tmp_path, "kd", seed, 0.8, topk=10, store_key="a" * 64)
    _run(tmp_path, "kd", 0, 0.9, topk=10, store_key="b" * 64)
    _run(tmp_path, "ls", 0, 0.7, topk=None, store_key="b" * 64)
    labels = {row.label: row.runs for row in compare_runs([tmp_path])}
    assert labels == {"kd": 2, "kd store=bbbbbbbb": 1, "ls": 1}


def test_of_several_cross_entropy_settings_the_best_is_the_baseline(tmp_path: Path) -> None:
    _run(tmp_path, "ce", 0, 0.70, lr=0.1)
    _run(tmp_path, "ce", 0, 0.80, lr=0.05)
    _run(tmp_path, "kd", 0, 0.85, lr=0.05)
    kd = next(row for row in compare_runs([tmp_path]) if row.method == "kd")
    assert kd.gain == pytest.approx(0.05)


@pytest.mark.parametrize(("name", "value"), [("student", "mlp-64"), ("epochs", 9), ("dataset", "e")])
def test_unlike_runs_are_not_compared(tmp_path: Path, name: str, value: object) -> None:
    _run(tmp_path, "ce", 0, 0.8)
    _run(tmp_path, "kd", 0, 0.8, **{name: value})
    with pytest.raises(ConfigError, match=name) as caught:
        compare_runs([tmp_path])
    words = (caught.value.hint or "").split("kdcache report ")[1].split()
    assert len(compare_runs(words)) == 1  # what the hint says works


def test_numbers_of_runs_that_diverged_stay_readable(tmp_path: Path) -> None:
    table = text_table(compare_runs([_run(tmp_path, "ce", 0, 0.01, nll=3.2e38)]))
    assert "3.2e+38" in table
    assert max(map(len, table.splitlines())) < 150


def test_runs_are_found_once_and_their_absence_is_said(tmp_path: Path) -> None:
    run = _run(tmp_path, "ce", 0, 0.8)
    assert find_runs([tmp_path, run]) == [run]
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(NotFoundError, match="no finished run"):
        find_runs([tmp_path / "unfinished"])


def test_runs_of_token_rows_show_their_perplexity_and_others_do_not(tmp_path: Path) -> None:
    for seed, perplexity in enumerate([100.0, 110.0]):
        _run(tmp_path, "ce", seed, 0.2, perplexity=perplexity)
    other = tmp_path / "images"
    (row,) = compare_runs([tmp_path])
    assert row.perplexity == pytest.approx(105)
    assert row.perplexity_sd == pytest.approx(50**0.5)
    assert "105.0 +-7.1" in text_table([row])
    other.mkdir()
    assert "perplexity" not in text_table(compare_runs([_run(other, "ce", 0, 0.2)]))
