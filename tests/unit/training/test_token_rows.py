"""Token feeds: every row that counts once, shared among processes as one process would see it, targets of its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kdcache.datasets.sequences import TokenSource
from kdcache.errors import ConfigError
from kdcache.loader.inputs import InputReader
from kdcache.loader.target_store import open_store
from kdcache.models.language import LstmLanguageModel, Segment
from kdcache.models.preprocess import Preprocessing
from kdcache.specs import PreprocessingSpec
from kdcache.training.config import TrainingConfig
from kdcache.training.processes import Processes
from kdcache.training.token_rows import TokenFeed, token_evaluation_on, token_feed
from tests.small_store import write_small_store
from tests.token_world import VOCABULARY, chain

LENGTHS = (90, 4, 33, 2, 61)
CPU = Processes(device=torch.device("cpu"))


def corpus(mask: NDArray[np.bool_] | None = None) -> TokenSource:
    """Sequences of LENGTHS rows and one token each."""
    lengths = np.array(LENGTHS) + 1
    tokens = np.concatenate([chain(int(length), seed=part) for part, length in enumerate(lengths)])
    full = None if mask is None else np.insert(mask, np.cumsum([0, *LENGTHS[:-1]]), True)
    return TokenSource.from_tokens(tokens, lengths, name="chain", split="train", num_classes=VOCABULARY, mask=full)


def feed(source: TokenSource, *, carry: bool, rank: int = 0, world_size: int = 1, segment: int = 8) -> TokenFeed:
    """Four lanes over the corpus."""
    return TokenFeed(
        source,
        torch.tensor(source.labels),
        batch_size=4 * segment,
        segment=segment,
        carry=carry,
        seed=5,
        rank=rank,
        world_size=world_size,
    )


@pytest.mark.parametrize("carry", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_an_epoch_gives_every_row_that_counts_once_with_its_label(carry: bool, masked: bool) -> None:
    mask = np.arange(sum(LENGTHS)) % 3 > 0 if masked else None
    source = corpus(mask)
    batches = list(feed(source, carry=carry).epoch(2))
    rows = np.concatenate([batch.rows for batch in batches])
    expected = np.arange(len(source)) if mask is None else np.flatnonzero(source.mask)  # type: ignore[arg-type]
    assert np.array_equal(np.sort(rows), expected)
    for batch in batches:
        assert isinstance(batch.inputs, Segment)
        assert batch.global_rows == len(batch.rows)
        assert batch.labels.tolist() == source.labels[batch.rows].tolist()
        assert batch.inputs.tokens[batch.inputs.keep].tolist() == source.tokens[batch.rows].tolist()
        assert (batch.inputs.carry is not None) == carry


@pytest.mark.parametrize("carry", [True, False])
def test_two_processes_share_the_lanes_of_one(carry: bool) -> None:
    source = corpus()
    one = list(feed(source, carry=carry).epoch(1))
    both = [list(feed(source, carry=carry, rank=rank, world_size=2).epoch(1)) for rank in (0, 1)]
    assert [len(part) for part in both] == [len(one)] * 2
    for whole, first, second in zip(one, *both, strict=True):
        assert first.global_rows == second.global_rows == len(whole.rows)
        assert sorted([*first.rows, *second.rows]) == sorted(whole.rows.tolist())


def test_a_step_without_a_row_that_counts_is_read_for_the_state_and_gives_no_loss() -> None:
    mask = np.ones(sum(LENGTHS), dtype=np.bool_)
    mask[:90] = np.arange(90) >= 88
    source = corpus(mask)
    lone = TokenFeed(
        source, torch.tensor(source.labels), batch_size=8, segment=8, carry=True, seed=0, rank=0, world_size=1
    )
    batches = list(lone.epoch(0))
    empty = [batch for batch in batches if not len(batch.rows)]
    assert empty
    assert all(batch.mask is not None and batch.divisor == 1 for batch in empty)
    assert all(isinstance(batch.inputs, Segment) and batch.inputs.lengths.sum() > 0 for batch in empty)
    alone = feed(source, carry=False)
    assert all(len(batch.rows) for batch in alone.epoch(0))


def test_targets_are_those_of_the_rows_the_model_answers_for(tmp_path: Path) -> None:
    source = corpus()
    logits = torch.randn(len(source), VOCABULARY, generator=torch.Generator().manual_seed(0))
    path = write_small_store(tmp_path / "store.zarr", source, logits=logits, topk=5).path  # type: ignore[arg-type]
    store = open_store(path)
    reading = TokenFeed(
        source, torch.tensor(source.labels), batch_size=32, segment=8, carry=True, seed=0, store=store, topk=3
    )
    for batch in reading.epoch(0):
        assert batch.targets is not None
        assert batch.targets.topk == 3
        assert batch.targets.label.tolist() == batch.labels.tolist()
        order = logits[torch.from_numpy(batch.rows)].topk(3).indices
        assert batch.targets.index.tolist() == order.tolist()


def test_figures_do_not_depend_on_how_the_rows_are_shared_out() -> None:
    source = corpus(np.arange(sum(LENGTHS)) % 4 > 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LstmLanguageModel(VOCABULARY, 6)
    whole = token_evaluation_on(source, CPU, context=8)(model)
    assert whole.rows == int(source.mask.sum())  # type: ignore[union-attr]
    assert whole.perplexity == pytest.approx(np.exp(whole.nll))
    assert model.training


def test_settings_that_token_rows_do_not_have_are_refused() -> None:
    source = corpus()
    model = LstmLanguageModel(VOCABULARY, 6)
    with pytest.raises(ConfigError, match="not cut into pieces"):
        token_feed(source, model, TrainingConfig(accumulate=2), CPU)
    with pytest.raises(ConfigError, match="0 parallel lanes") as caught:
        token_feed(source, model, TrainingConfig(batch_size=20), CPU)
    assert "--batch-size 35" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="multiple of the 2 processes"):
        token_feed(
            source, model, TrainingConfig(batch_size=105), Processes(rank=0, world_size=2, device=torch.device("cpu"))
        )
    with pytest.raises(ConfigError, match="mean nothing one by one"):
        InputReader(source, Preprocessing(PreprocessingSpec()))
