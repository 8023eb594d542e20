"""The page about a store: every part is there, hostile names are text, nothing is private, pictures are the rows."""

from __future__ import annotations

import base64
import io
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdcache.errors import ConfigError, IncompatibleError, NotFoundError
from kdcache.pages.store_page import store_page
from kdcache.pages.thumbnails import thumbnails
from kdcache.pages.write import is_store, write_store_report
from kdcache.stats import store_stats
from tests.logit_store import random_logits, write_logit_store
from tests.small_store import SmallStore, small_source, write_small_store
from tests.unit.html.test_markup import HOSTILE, read

K = len(HOSTILE) + 1


@pytest.fixture(scope="module")
def hostile_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two views, k below K, and names that would be markup."""
    first, labels = random_logits(400, K)
    second = first + random_logits(400, K, seed=2)[0]
    folder = tmp_path_factory.mktemp("pages")
    return write_logit_store(
        folder / "store.zarr",
        [first, second],
        labels,
        topk=3,
        class_names=(*HOSTILE, "cow"),
        name="<script>alert('data')</script>",
        source='"><img src=x onerror=alert(1)>',
    )


def test_hostile_names_of_a_store_stay_text(hostile_store: Path) -> None:
    source = store_page(store_stats(hostile_store))
    found = read(source)
    assert sum(tag == "script" for tag, _ in found.tags) == 1
    assert not [key for _, attributes in found.tags for key, _ in attributes if key.startswith("on")]
    images = [dict(attributes) for tag, attributes in found.tags if tag == "img"]
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in images)
    for name in HOSTILE:
        assert name in found.words


def test_every_part_is_there_with_its_numbers(hostile_store: Path) -> None:
    stats = store_stats(hostile_store)
    found = read(store_page(stats))
    anchors = {dict(attributes).get("id") for tag, attributes in found.tags if tag == "section"}
    assert anchors == {"teacher", "topk", "views", "classes", "contradicted", "bytes", "use"}
    assert f"{stats.figures.top1:.1%}" in found.words
    assert stats.store_key in found.words
    charts = [dict(attributes) for tag, attributes in found.tags if tag == "svg" and dict(attributes).get("role")]
    assert len(charts) >= 6
    assert all(chart["aria-label"] and chart["tabindex"] == "0" for chart in charts)


def test_a_store_of_one_view_with_every_class_has_fewer_parts(tmp_path: Path) -> None:
    logits = random_logits(300, 4)[0]
    stats = store_stats(write_logit_store(tmp_path / "s", [logits], logits.argmax(dim=1), topk=4))
    assert stats.contradictions == ()
    anchors = {dict(attributes).get("id") for tag, attributes in read(store_page(stats)).tags if tag == "section"}
    assert anchors == {"teacher", "topk", "classes", "bytes", "use"}
    two = replace(stats, classes=2, class_means=None, by_class=(), confused=(), mixed=True)
    assert "first label" in store_page(two)


def test_no_folder_of_this_machine_is_in_the_page(hostile_store: Path) -> None:
    assert str(hostile_store.parent) not in store_page(store_stats(hostile_store.resolve()))


@pytest.fixture(scope="module")
def wrong_labels(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store of images whose teacher contradicts some labels."""
    source = small_source(300)
    logits = torch.nn.functional.one_hot(torch.from_numpy(source.labels), source.num_classes).float() * 6
    for row in (5, 100, 299):
        logits[row] = logits[row].roll(1)
    return write_small_store(tmp_path_factory.mktemp("wrong") / "store", source, logits=logits)


def test_thumbnails_are_the_pixels_of_the_contradicted_rows(wrong_labels: SmallStore) -> None:
    stats = store_stats(wrong_labels.path)
    assert sorted(item.row for item in stats.contradictions) == [5, 100, 299]
    shown = thumbnails(wrong_labels.source, stats.contradictions)
    data = re.search(r"base64,([^\"]+)", shown[100])
    assert data is not None
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data.group(1)))))
    assert np.array_equal(pixels, wrong_labels.source.examples[100, :, :, 0])
    page = store_page(stats, thumbnails=shown)
    assert page.count("<img") == 4  # and the heat map


def test_pictures_of_another_data_set_are_refused(wrong_labels: SmallStore) -> None:
    items = store_stats(wrong_labels.path).contradictions
    other = small_source(300, seed=1)
    with pytest.raises(IncompatibleError, match=r"row|label"):
        thumbnails(other, items)
    other.labels[:] = wrong_labels.source.labels
    with pytest.raises(IncompatibleError, match="another example"):
        thumbnails(other, items)
    with pytest.raises(IncompatibleError, match="10 rows"):
        thumbnails(small_source(10), items)


def test_examples_that_are_no_images_have_no_pictures(wrong_labels: SmallStore) -> None:
    source, items = small_source(300), store_stats(wrong_labels.path).contradictions
    digests = [replace(item, row_digest=0) for item in items]
    source.identity = "weak"
    source.examples = source.examples.astype(np.float32)
    assert thumbnails(source, digests) == {}


def test_the_file_is_written_whole_or_not_at_all(
    hostile_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file, stats = write_store_report(str(hostile_store))
    assert file.name == "store-report.html"
    assert file.read_text(encoding="utf-8").endswith("</html>\n")
    assert stats.views == 2
    assert [path.name for path in tmp_path.iterdir()] == ["store-report.html"]
    with pytest.raises(NotFoundError, match="no such folder"):
        write_store_report(str(hostile_store), out=tmp_path / "missing" / "a.html")
    with pytest.raises(ConfigError, match="found a folder"):
        write_store_report(str(hostile_store), out=tmp_path)


def test_stores_are_told_from_runs(hostile_store: Path, tmp_path: Path) -> None:
    assert is_store(str(hostile_store))
    assert is_store("s3://bucket/store")
    assert not is_store(str(tmp_path))
    with pytest.raises(NotFoundError, match="nothing there"):
        is_store(str(tmp_path / "missing"))


@pytest.mark.parametrize("name", ["x; touch y", "$(touch y)", "-rf", "a'b", "plain.zarr"])
def test_a_name_in_a_command_to_copy_is_one_word(tmp_path: Path, name: str) -> None:
    logits, labels = random_logits(300, 4)
    found = read(store_page(store_stats(write_logit_store(tmp_path / name, [logits], labels, topk=2))))
    line = next(words for words in re.findall(r"kdcache verify .*?(?=Copy)", found.words))
    assert shlex.split(line) == ["kdcache", "verify", "./-rf" if name == "-rf" else name]
