"""Row i is row i: any change of example, order or label is noticed and named."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.datasets.files import open_image_folder
from kdcache.datasets.identity import check_identity, content_digest, dataset_spec, row_digests, sampled_rows
from kdcache.datasets.source import ArraySource
from kdcache.errors import ConfigError, IncompatibleError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (50, 4, 4, 3), dtype=np.uint8)
LABELS = np.arange(50) % 5


def _source(images: np.ndarray = IMAGES, labels: np.ndarray = LABELS, num_classes: int = 5) -> ArraySource:
    return ArraySource(images, labels, name="x", split="train", num_classes=num_classes)


def _crc32c(data: bytes) -> int:
    """Castagnoli's checksum bit by bit, from its reflected polynomial."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def test_row_digest_is_the_folded_crc32c() -> None:
    assert _crc32c(b"123456789") == 0xE3069283
    digests = row_digests(_source(), [3, 7])
    expected = [_crc32c(IMAGES[row].tobytes()) for row in (3, 7)]
    assert digests.dtype == np.uint16
    assert digests.tolist() == [(value >> 16) ^ (value & 0xFFFF) for value in expected]


def test_content_digest_is_lengths_and_bytes_in_row_order() -> None:
    text = b"|u1 (4, 4, 3)\n" + b"".join((48).to_bytes(8, "little") + image.tobytes() for image in IMAGES)
    assert content_digest(_source()) == hashlib.sha256(text).hexdigest()


@given(row=st.integers(0, 49), value=st.integers(1, 255))
def test_any_changed_pixel_changes_the_content_digest(row: int, value: int) -> None:
    changed = IMAGES.copy()
    changed[row, 0, 0, 0] ^= np.uint8(value)
    assert content_digest(_source(changed)) != content_digest(_source())


def test_spec_does_not_depend_on_memory_layout() -> None:
    strided = np.asfortranarray(IMAGES)
    assert dataset_spec(_source(strided, LABELS.astype(np.uint8)), card="c") == dataset_spec(_source(), card="c")


def test_file_digests_are_cached_until_a_file_changes(
    image_root: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = image_root / "train"
    first = content_digest(open_image_folder(folder, name="x", split="train"))
    assert len(list((own_cache / "content").iterdir())) == 1
    second = open_image_folder(folder, name="x", split="train")
    monkeypatch.setattr(type(second), "raw", lambda self, row: pytest.fail("read again"))
    assert content_digest(second) == first
    monkeypatch.undo()
    monkeypatch.setenv("KDCACHE_CACHE_DIR", str(own_cache))
    path = folder / second.paths[0]
    path.write_bytes((folder / second.paths[2]).read_bytes())
    assert content_digest(open_image_folder(folder, name="x", split="train")) != first


def test_a_damaged_or_unwritable_cache_is_ignored(image_root: Path, own_cache: Path) -> None:
    folder = image_root / "train"
    first = content_digest(open_image_folder(folder, name="x", split="train"))
    for file in (own_cache / "content").iterdir():
        file.write_text("rubbish")
    assert content_digest(open_image_folder(folder, name="x", split="train")) == first
    for file in (own_cache / "content").iterdir():
        file.unlink()
    (own_cache / "content").rmdir()
    (own_cache / "content").write_text("a file in the way")
    assert content_digest(open_image_folder(folder, name="x", split="train")) == first


def _check(source: ArraySource, sample: int = 1000) -> None:
    original = _source()
    spec = dataset_spec(original, card="c")
    check_identity(source, spec, original.labels, row_digests(original, range(50)), sample=sample)


def test_the_same_data_passes() -> None:
    _check(_source(IMAGES.copy()))
    _check(_source(), sample=3)


def test_differences_are_named() -> None:
    swapped = IMAGES.copy()
    swapped[[5, 10]] = swapped[[10, 5]]  # the same label, so only the pixels tell
    relabelled = LABELS.copy()
    relabelled[7] = 0
    for source, message in (
        (_source(swapped), r"row 5 is another example \(its raw digest differs, as for 2 of 50 rows"),
        (_source(labels=relabelled), r"label of row 7 is 0, the store says 2 \(1 of 50 labels differ\)"),
        (_source(IMAGES[:-1], LABELS[:-1]), "the store has 50 rows, the data set 49"),
        (_source(num_classes=6), "the store has 5 classes, the data set 6"),
    ):
        with pytest.raises(IncompatibleError, match=message):
            _check(source)


def test_a_permutation_is_found_by_a_small_sample() -> None:
    images = np.arange(10_000, dtype=np.int64).reshape(-1, 1)
    labels = np.zeros(10_000, dtype=np.int64)
    source = _source(images, labels)
    shuffled = _source(np.random.default_rng(1).permutation(images), labels)
    with pytest.raises(IncompatibleError, match="is another example"):
        check_identity(shuffled, dataset_spec(source, card="c"), labels, row_digests(source, range(10_000)), sample=64)


@given(num_rows=st.integers(1, 5000), sample=st.integers(1, 600))
def test_sampled_rows_are_valid_distinct_and_spread(num_rows: int, sample: int) -> None:
    rows = sampled_rows(num_rows, sample)
    assert rows[0] == 0
    assert rows[-1] == num_rows - 1
    assert (np.diff(rows) > 0).all()
    assert len(rows) <= min(num_rows, sample + 2)
    assert np.diff(rows).max(initial=0) <= 2 * (num_rows // sample + 1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.where(np.arange(50) == 9, 5, LABELS), r"label 5 of row 9 is outside 0..4 \(1 such rows\)"),
        (np.where(np.arange(50) == 9, -1, LABELS), "label -1 of row 9"),
        (LABELS[:-1], "50 rows but 49 labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(IncompatibleError, match=message):
        dataset_spec(_source(labels=labels), card="c")


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no rows"):
        dataset_spec(_source(IMAGES[:0], LABELS[:0]), card="c")
