"""Segments hold the right tokens; an opinion depends on the row and its context, not on what is read beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kdcache.datasets.sequences import TokenSource
from kdcache.errors import ConfigError
from kdcache.loader.segments import Lane, stream_steps
from kdcache.loader.tokens import TokenReader, context_of, segment_of, with_context
from kdcache.models.language import LstmLanguageModel, Segment
from kdcache.specs import PreprocessingSpec

LENGTHS = (50, 2, 7, 90)


@pytest.fixture
def source() -> TokenSource:
    tokens = np.random.default_rng(0).integers(0, 30, sum(LENGTHS))
    return TokenSource.from_tokens(tokens, np.array(LENGTHS), name="w", split="train", num_classes=30)


@pytest.fixture
def model() -> LstmLanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LstmLanguageModel(30, 12, 2).eval()


def opinions(model: torch.nn.Module, source: TokenSource, batches: list[np.ndarray], context: int) -> Tensor:
    """(rows, K) logits."""
    with torch.inference_mode():
        return torch.cat([model(segment) for segment, _ in TokenReader(source, context=context).batches(batches)])


def test_a_whole_sequence_of_context_gives_the_opinion_of_reading_it_in_one_go(
    source: TokenSource, model: LstmLanguageModel
) -> None:
    found = opinions(model, source, [np.arange(len(source))], 1000)
    expected = []
    with torch.inference_mode():
        for start, stop in zip(source.sequence_offsets[:-1], source.sequence_offsets[1:], strict=True):
            row = torch.from_numpy(source.tokens[start:stop].astype(np.int64))[None]
            expected.append(model.head(model.lstm(model.embedding(row))[0])[0])
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("context", [1, 5, 16])
def test_an_opinion_does_not_depend_on_the_rows_read_with_it(
    source: TokenSource, model: LstmLanguageModel, context: int
) -> None:
    rows = np.arange(len(source))
    straight = opinions(model, source, [rows], context)
    for batches in ([rows[i : i + 13] for i in range(0, len(rows), 13)], [rows[::3], rows[1::3], rows[2::3]]):
        order = torch.from_numpy(np.concatenate(batches))
        torch.testing.assert_close(opinions(model, source, batches, context), straight[order], rtol=1e-5, atol=1e-6)


def test_a_row_sees_nothing_of_other_sequences_nor_of_what_follows(
    source: TokenSource, model: LstmLanguageModel
) -> None:
    before = opinions(model, source, [np.arange(len(source))], 8)
    changed = source.tokens.copy()
    changed[49:51] = (changed[49:51] + 1) % 30  # sequence 1 (row 49), and the first row of sequence 2
    other = TokenSource(changed, source.labels, source.sequence_offsets, name="w", split="train", num_classes=30)
    after = opinions(model, other, [np.arange(len(other))], 8)
    same = (before == after).all(dim=1)
    assert same[:49].all()
    assert not same[49:56].any()
    assert same[56:].all()


def test_segments_of_streams_carry_the_state_as_one_long_reading_would(model: LstmLanguageModel) -> None:
    tokens = np.random.default_rng(1).integers(0, 30, 61)
    source = TokenSource.from_tokens(tokens, name="w", split="train", num_classes=30)
    model.train()  # no dropout in this model
    pieces: dict[int, Tensor] = {}
    for step in stream_steps(source.sequence_offsets, lanes=3, segment=7, carry=True, seed=0, epoch=0):
        segment, rows = segment_of(source, step, carry=True)
        logits = model(segment)
        pieces |= dict(zip(rows.tolist(), logits.detach(), strict=True))
    for start in (0, 20, 40):
        row = torch.from_numpy(source.tokens[start : start + 20].astype(np.int64))[None]
        expected = model.head(model.lstm(model.embedding(row))[0])[0]
        found = torch.stack([pieces[start + place] for place in range(20)])
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)


def test_rows_that_do_not_count_are_read_and_not_kept(source: TokenSource) -> None:
    mask = np.arange(len(source)) % 2 == 0
    masked = TokenSource(
        source.tokens, source.labels, source.sequence_offsets, name="w", split="t", num_classes=30, mask=mask
    )
    segment, rows = segment_of(masked, [Lane(0, 7), None, Lane(60, 63)], carry=False)
    assert rows.tolist() == [0, 2, 4, 6, 60, 62]
    assert len(segment) == len(rows)
    assert segment.lengths.tolist() == [7, 0, 3]
    assert segment.tokens[0].tolist() == source.tokens[:7].tolist()
    assert segment.tokens[segment.keep].tolist() == source.tokens[rows].tolist()


def test_a_segment_moves_between_devices_whole() -> None:
    row = torch.ones(2, 3, dtype=torch.int64)
    segment = Segment(tokens=row, keep=row > 0, lengths=torch.tensor([3, 3]), carry=torch.tensor([True, False]))
    moved = segment.to("meta")
    assert {moved.tokens.device.type, moved.keep.device.type, moved.lengths.device.type} == {"meta"}
    assert moved.carry is not None
    assert moved.carry.device.type == "meta"


def test_the_context_is_written_into_the_teachers_preprocessing() -> None:
    assert context_of(with_context(PreprocessingSpec(), 64)) == 64
    assert context_of(with_context(PreprocessingSpec(code="teacher.py:make"), 7)) == 7
    assert context_of(PreprocessingSpec(code="teacher.py:make")) == 0
    assert with_context(PreprocessingSpec(), 64) != with_context(PreprocessingSpec(), 65)


def test_a_second_view_and_no_context_are_refused(source: TokenSource) -> None:
    with pytest.raises(ConfigError, match="one view"):
        next(TokenReader(source, context=4).batches([np.arange(3)], view=1))
    with pytest.raises(ConfigError, match="context: expected at least 1"):
        TokenReader(source, context=0)
