"""Statistics of whole stores: against dense logits, planted label noise, bytes on disk, and bad input."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kdcache.errors import ChecksumError, ConfigError, CorruptStoreError
from kdcache.stats import store_stats
from kdcache.stats import survey as module
from kdcache.stats.tempered import TemperedSums
from kdcache.targets.encode import encode_topk
from tests.logit_store import random_logits, write_logit_store

ROWS, K = 700, 12  # three blocks


@pytest.fixture(scope="module")
def two_views(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[torch.Tensor], torch.Tensor]:
    first, labels = random_logits(ROWS, K)
    views = [first, first + 0.5 * random_logits(ROWS, K, seed=9)[0]]
    path = write_logit_store(tmp_path_factory.mktemp("stats") / "store", views, labels, topk=K)
    return path, views, labels


def test_five_classes_have_no_top_five(tmp_path: Path) -> None:
    for classes, said in ((5, False), (6, True)):
        logits, labels = random_logits(300, classes)
        path = write_logit_store(tmp_path / str(classes), [logits], labels, topk=classes)
        assert (store_stats(path).figures.top5 is not None) == said


def test_teacher_figures_are_those_of_the_logits(
    two_views: tuple[Path, list[torch.Tensor], torch.Tensor],
) -> None:
    path, views, labels = two_views
    found = store_stats(path)
    log_p = torch.cat([torch.log_softmax(view.double(), dim=1) for view in views])
    label = labels.repeat(2)
    right = log_p.argmax(dim=1) == label
    assert found.figures.top1 == pytest.approx(float(right.double().mean()), abs=2 / ROWS)  # ties after rounding
    five = (log_p.topk(5, dim=1).indices == label[:, None]).any(dim=1)
    assert found.figures.top5 == pytest.approx(float(five.double().mean()), abs=2 / ROWS)
    assert found.figures.nll == pytest.approx(-float(log_p.gather(1, label[:, None]).mean()), rel=1e-3)
    confidence = log_p.max(dim=1).values.exp().numpy()
    edges = np.linspace(0, 1, 16)
    inside = [(confidence > low) & (confidence <= high) for low, high in itertools.pairwise(edges)]
    ece = sum(abs(confidence[rows].sum() - right.numpy()[rows].sum()) for rows in inside) / len(confidence)
    assert found.figures.ece == pytest.approx(ece, abs=2e-3)
    assert found.figures.confidence == pytest.approx(confidence.mean(), rel=1e-3)
    assert sum(found.figures.histogram) == sum(found.figures.calibration.count) == 2 * ROWS
    assert found.class_means is not None
    mean = torch.stack([log_p[label == c].exp().mean(dim=0) for c in range(K)])
    assert np.allclose(found.class_means, mean.numpy(), atol=1e-3)
    pair = found.confused[0]
    both = mean + mean.T
    assert float(both[pair.first, pair.second]) == pytest.approx(float(both.triu(1).max()), rel=1e-2)
    worst = found.by_class[0]
    assert worst.rows == int((label == worst.label).sum())
    assert worst.top1 == pytest.approx(float(right[label == worst.label].double().mean()), abs=0.01)


def test_views_are_compared_row_by_row(two_views: tuple[Path, list[torch.Tensor], torch.Tensor]) -> None:
    path, (first, second), _ = two_views
    found = store_stats(path).agreement
    assert found is not None
    assert found.pairs == ROWS
    same = first.argmax(dim=1) == second.argmax(dim=1)
    assert found.top1_agreement == pytest.approx(float(same.double().mean()), abs=2 / ROWS)
    p, q = (torch.log_softmax(view.double(), dim=1) for view in (first, second))
    symmetric = ((p.exp() - q.exp()) * (p - q)).sum(dim=1).mean() / 2
    assert found.symmetric_kl == pytest.approx(float(symmetric), rel=5e-3)
    assert not found.modelled


def test_three_views_are_compared_in_a_ring(tmp_path: Path) -> None:
    views = [random_logits(300, 6, seed=seed)[0] for seed in range(3)]
    labels = views[0].argmax(dim=1)
    found = store_stats(write_logit_store(tmp_path / "s", views, labels, topk=6)).agreement
    assert found is not None
    assert found.pairs == 900
    first = [view.argmax(dim=1) for view in views]
    same = sum(int((first[a] == first[b]).sum()) for a, b in ((0, 1), (1, 2), (2, 0)))
    assert found.top1_agreement == pytest.approx(same / 900, abs=3 / 900)


def test_one_view_says_nothing_about_views(tmp_path: Path) -> None:
    logits, labels = random_logits(300, 6)
    found = store_stats(write_logit_store(tmp_path / "s", [logits], labels, topk=3))
    assert found.agreement is None
    assert found.figures.top5 is None  # three classes cannot say who the fifth is


def test_planted_label_noise_is_named_first(tmp_path: Path) -> None:
    truth, labels = random_logits(600, 10, scale=0.5)
    labels = truth.argmax(dim=1)
    planted = [3, 257, 599]  # one in each block
    for row in planted:
        truth[row] = torch.full((10,), -8.0)
        truth[row, 7] = 8.0
        labels[row] = 2
    found = store_stats(write_logit_store(tmp_path / "s", [truth, truth], labels, topk=4), contradictions=5)
    assert sorted(item.row for item in found.contradictions[:3]) == planted
    worst = found.contradictions[0]
    assert (worst.label, worst.predicted, worst.predicted_name) == (2, 7, "7")
    assert worst.margin == pytest.approx(16, abs=0.05)
    assert worst.row_digest == worst.row
    assert found.contradictions[3:] == ()  # elsewhere the teacher says the label


def test_bytes_add_up_by_array_and_by_view(two_views: tuple[Path, list[torch.Tensor], torch.Tensor]) -> None:
    path, _, _ = two_views
    found = store_stats(path)
    assert found.bytes_on_disk == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    chunks = [file for file in (path / "tail" / "c" / "1").rglob("*") if file.is_file()]
    assert found.bytes_by_view["tail"][1] == sum(file.stat().st_size for file in chunks) > 0
    assert set(found.bytes_by_view) == {"topk_index", "topk_log_prob", "tail", "label_log_prob"}
    assert found.full_logits_bytes == 2 * ROWS * K * 4


def test_suggested_k_is_the_first_that_reaches_the_cosine_at_every_temperature_up_to_four(
    two_views: tuple[Path, list[torch.Tensor], torch.Tensor],
) -> None:
    found = store_stats(two_views[0], temperatures=(1, 4, 8))
    k = found.suggested_topk
    assert k is not None
    judged = found.temperatures[:2]
    assert all(at.gradient_cosine[k - 1] >= 0.99 for at in judged)
    assert any(at.gradient_cosine[k - 2] < 0.99 for at in judged)
    assert store_stats(two_views[0], temperatures=(8,)).suggested_topk is None


def test_mixed_views_are_not_held_against_one_label(
    two_views: tuple[Path, list[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, _ = two_views
    opened = module.open_reader(path)
    mixed = replace(opened.manifest.views, policy="patient", ops=({"op": "mixup"},))
    opened.manifest = replace(opened.manifest, views=mixed)
    monkeypatch.setattr(module, "open_reader", lambda location: opened)
    found = module.store_stats(path, temperatures=(1.0,), contradictions=5)
    assert found.mixed
    assert (found.by_class, found.confused, found.contradictions, found.class_means) == ((), (), (), None)
    assert found.agreement is not None


def test_a_damaged_block_is_an_error(tmp_path: Path) -> None:
    logits, labels = random_logits(300, 6)
    path = write_logit_store(tmp_path / "s", [logits], labels, topk=3)
    chunk = next(file for file in (path / "tail" / "c").rglob("*") if file.is_file())
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    with pytest.raises((ChecksumError, CorruptStoreError), match="tail"):
        store_stats(path)


@pytest.mark.parametrize("temperatures", [(0.0,), (-1.0,), (float("inf"),), (float("nan"),), ()])
def test_temperatures_out_of_range_are_refused(tmp_path: Path, temperatures: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="temperatures"):
        store_stats(tmp_path, temperatures=temperatures)


def test_class_names_are_the_data_sets_or_the_numbers(tmp_path: Path) -> None:
    logits, labels = random_logits(300, 3)
    named = write_logit_store(tmp_path / "a", [logits], labels, topk=2, class_names=("cat", "dog", "<b>cow</b>"))
    assert {item.name for item in store_stats(named).by_class} == {"cat", "dog", "<b>cow</b>"}
    plain = write_logit_store(tmp_path / "b", [logits], labels, topk=2)
    assert {item.name for item in store_stats(plain).by_class} == {"0", "1", "2"}


def test_encoded_and_stored_numbers_agree(tmp_path: Path) -> None:
    logits, labels = random_logits(300, 40)
    stored = store_stats(write_logit_store(tmp_path / "s", [logits], labels, topk=5), temperatures=(4,)).temperatures[0]
    live = TemperedSums(4.0, topk=5, num_classes=40)
    live.add(encode_topk(logits, labels, topk=5).targets())
    assert stored.mass == pytest.approx(live.result().mass, rel=1e-3)
    assert stored.gradient_error == pytest.approx(live.result().gradient_error, rel=2e-2)


def test_rows_that_a_mask_leaves_out_give_no_figure(tmp_path: Path) -> None:
    logits, labels = random_logits(600, 8)
    mask = (np.arange(600) % 3 > 0).astype(np.uint8)
    mask[256:512] = 0  # a block of padding alone
    padded, wrong = logits.clone(), labels.clone()
    padded[torch.from_numpy(mask) == 0] *= 9
    wrong[torch.from_numpy(mask) == 0] = (logits.argmax(dim=1)[torch.from_numpy(mask) == 0] + 1) % 8
    kept = torch.from_numpy(np.flatnonzero(mask))
    found = store_stats(write_logit_store(tmp_path / "a", [padded, padded], wrong, topk=5, mask=mask))
    plain = store_stats(write_logit_store(tmp_path / "b", [logits[kept]] * 2, labels[kept], topk=5))
    assert (found.rows, found.counted) == (600, len(kept))
    assert (found.figures.top1, found.figures.histogram) == (plain.figures.top1, plain.figures.histogram)
    assert found.figures.nll == pytest.approx(plain.figures.nll, rel=1e-6)
    assert found.temperatures[0].mass == pytest.approx(plain.temperatures[0].mass, rel=1e-9)
    assert [int(kept[item.row]) for item in plain.contradictions] == [item.row for item in found.contradictions]
    assert {item.row for item in found.contradictions} <= set(kept.tolist())
    assert found.agreement is not None
    assert found.agreement.pairs == len(kept)
