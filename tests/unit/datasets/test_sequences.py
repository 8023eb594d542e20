"""Token rows: every row a token and the one after it, inside its own sequence; bad corpora are refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.datasets.cards import open_dataset
from kdcache.datasets.identity import check_identity, content_digest, dataset_spec, row_digests
from kdcache.datasets.sequences import TokenSource, check_sequences, counted_rows, is_sequence
from kdcache.datasets.source import DataSource
from kdcache.datasets.text import open_text
from kdcache.datasets.token_files import open_token_file
from kdcache.errors import IncompatibleError, NotFoundError
from tests.token_world import LENGTHS, VOCABULARY, make_token_world


def source(tokens: list[int], lengths: list[int] | None = None, mask: list[bool] | None = None) -> TokenSource:
    """A data set "words" of these tokens, K = 10."""
    return TokenSource.from_tokens(
        np.array(tokens),
        None if lengths is None else np.array(lengths),
        name="words",
        split="train",
        num_classes=10,
        mask=None if mask is None else np.array(mask),
    )


@given(st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=9), min_size=1, max_size=6))
def test_every_row_is_a_token_and_the_one_after_it_in_its_sequence(sequences: list[list[int]]) -> None:
    data = source([token for one in sequences for token in one], [len(one) for one in sequences])
    rows = [pair for one in sequences for pair in itertools.pairwise(one)]
    assert list(zip(data.tokens.tolist(), data.labels.tolist(), strict=True)) == rows
    starts, stops = data.sequence_offsets[:-1], data.sequence_offsets[1:]
    assert [data.tokens[a:b].tolist() for a, b in zip(starts, stops, strict=True)] == [one[:-1] for one in sequences]


def test_it_is_a_data_source_and_says_that_it_has_sequences() -> None:
    data = source([1, 2, 3])
    assert isinstance(data, DataSource)
    assert is_sequence(data)
    assert data.example(1).shape == ()
    assert data.example(1) == 2


def test_a_row_is_known_by_the_tokens_before_it_in_its_sequence() -> None:
    data = source([1, 2, 3, 9, 3, 3, 5], [3, 4])
    assert data.raw(1) == np.array([1, 2], dtype="<u4").tobytes()
    assert data.raw(2) == np.array([9], dtype="<u4").tobytes()
    assert data.raw(4) == np.array([9, 3, 3], dtype="<u4").tobytes()
    one, other = source([1, 2, 3, 4, 5]), source([9, 2, 3, 4, 5])
    assert (row_digests(one, range(4)) != row_digests(other, range(4))).all()


def test_the_content_digest_knows_tokens_boundaries_and_mask() -> None:
    kinds = [
        source([1, 2, 3, 4, 5, 6]),
        source([1, 2, 4, 4, 5, 6]),
        source([1, 2, 3, 4, 5, 6], mask=[True, True, False, True, True, True]),
        source([1, 2, 3, 4, 4, 5, 6], [4, 3]),
        source([1, 2, 3, 3, 4, 5, 6], [3, 4]),
    ]
    assert len({content_digest(kind) for kind in kinds}) == len(kinds)
    assert content_digest(source([1, 2, 3, 4, 5, 6])) == content_digest(kinds[0])


def test_a_mask_says_which_predicted_tokens_count() -> None:
    data = source([1, 2, 3, 4, 5, 6], [4, 2], mask=[True, False, True, True, True, False])
    assert data.labels.tolist() == [2, 3, 4, 6]
    assert counted_rows(data).tolist() == [1, 2]


def test_a_part_keeps_its_tokens_and_cuts_the_boundaries() -> None:
    data = source([1, 2, 3, 4, 5, 6, 7, 8, 9], [3, 4, 2])
    part = data.part(1, 5, split="train[1:5]")
    assert part.tokens.tolist() == data.tokens[1:5].tolist()
    assert part.labels.tolist() == data.labels[1:5].tolist()
    assert part.sequence_offsets.tolist() == [0, 1, 4]


@pytest.mark.parametrize(
    ("tokens", "lengths", "said"),
    [
        ([1, 2, 3], [3, 1], "4 tokens in all"),
        ([1, 2, 3, 4], [3, 1], "sequence 1 has 1 tokens"),
        ([1], None, "sequence 0 has 1 tokens"),
        ([1, 2, 10, 4], None, "token 10 of row 2 is outside 0..9"),
        ([1, -2, 3], None, "token -2 of row 1"),
    ],
)
def test_a_broken_corpus_is_refused(tokens: list[int], lengths: list[int] | None, said: str) -> None:
    with pytest.raises(IncompatibleError, match=said):
        source(tokens, lengths)


def test_offsets_that_are_no_partition_and_an_empty_mask_are_refused() -> None:
    for offsets in ([0, 2], [1, 3], [0, 3, 3], [0, 2, 1, 3]):
        with pytest.raises(IncompatibleError, match="sequence offsets must rise from 0 to 3"):
            TokenSource(np.arange(3), np.arange(3), np.array(offsets), name="words", split="train", num_classes=10)
    with pytest.raises(IncompatibleError, match="the mask lets no row count"):
        source([1, 2, 3], mask=[True, False, False])


def test_other_tokens_or_other_boundaries_are_not_the_stores() -> None:
    data = source([1, 2, 3, 4, 5, 6, 7], [4, 3])
    spec = dataset_spec(data, card="words")
    check_sequences(data, spec, content_digest(data), data.sequence_offsets)
    cut = TokenSource(data.tokens, data.labels, np.array([0, 2, 5]), name="words", split="train", num_classes=10)
    check_identity(cut, spec, data.labels, row_digests(cut, range(5)))
    with pytest.raises(IncompatibleError, match="cut at other rows"):
        check_sequences(cut, spec, content_digest(cut), data.sequence_offsets)
    masked = source([1, 2, 3, 4, 5, 6, 7], [4, 3], mask=[True] * 6 + [False])
    with pytest.raises(IncompatibleError, match="its tokens or its mask differ"):
        check_sequences(masked, spec, content_digest(masked), data.sequence_offsets)
    with pytest.raises(IncompatibleError, match="the store has rows that stand alone"):
        check_sequences(data, spec, content_digest(data), None)


def test_text_becomes_words_by_first_appearance_with_sentence_ends(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(" the cat sat \n the dog\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("dog sat\n", encoding="utf-8")
    train = open_text(tmp_path / "train.txt", vocabulary_from=tmp_path / "train.txt", name="t", split="train")
    test = open_text(tmp_path / "test.txt", vocabulary_from=tmp_path / "train.txt", name="t", split="test")
    assert train.num_classes == test.num_classes == 5  # the cat sat <eos> dog
    assert [*train.tokens.tolist(), train.labels[-1]] == [0, 1, 2, 3, 0, 4, 3]
    assert [*test.tokens.tolist(), test.labels[-1]] == [4, 2, 3]


def test_a_word_the_training_file_has_not_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a b\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("a zebra\n", encoding="utf-8")
    with pytest.raises(IncompatibleError, match="'zebra' is not in the training file"):
        open_text(tmp_path / "test.txt", vocabulary_from=tmp_path / "train.txt", name="t", split="test")
    with pytest.raises(NotFoundError, match="no such file"):
        open_text(tmp_path / "gone.txt", vocabulary_from=tmp_path / "train.txt", name="t", split="test")
    (tmp_path / "test.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(IncompatibleError, match="not UTF-8"):
        open_text(tmp_path / "test.txt", vocabulary_from=tmp_path / "train.txt", name="t", split="test")


def test_a_token_file_opens_by_its_card_whole_or_in_part(tmp_path: Path) -> None:
    path = make_token_world(tmp_path)
    whole = open_dataset("tokens", split="train", root=path)
    assert is_sequence(whole)
    assert whole.num_classes == VOCABULARY
    assert np.diff(whole.sequence_offsets).tolist() == [length - 1 for length in LENGTHS["train"]]
    part = open_dataset("tokens", split="train[:705]", root=path)
    assert is_sequence(part)
    assert np.array_equal(part.tokens, whole.tokens[:705])
    assert part.split == "train[0:705]"


def test_a_token_file_without_the_split_or_with_other_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_tokens=np.zeros((3, 2), dtype=np.int64))
    with pytest.raises(IncompatibleError, match="expected whole numbers train_tokens"):
        open_token_file(tmp_path / "a.npz", name="t", split="train", num_classes=0)
    with pytest.raises(IncompatibleError, match="no array 'test_tokens'"):
        open_token_file(tmp_path / "a.npz", name="t", split="test", num_classes=0)


@pytest.mark.shared
def test_ptb_has_the_published_sizes_and_the_cards_digests(shared: Path) -> None:
    sizes = {"train": 929_589, "val": 73_760, "test": 82_430}
    for split, tokens in sizes.items():
        data = open_dataset("ptb", split=split, root=shared)
        assert len(data) == tokens - 1
        assert data.num_classes == 10_000
