"""Language models over token rows: what they are given (`Segment`), built-in LSTMs, and an adapter for users' modules.

A language model takes a `Segment` (lanes of tokens, of which some rows are kept) and gives logits of the kept rows
only: padding, and tokens read again for context, never reach the vocabulary-sized last layer, which is where a word
model spends its time and memory. Which rows go where is `loader.segments`' business.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.errors import ConfigError

_LSTM = re.compile(
    r"lstm-(?P<width>[1-9]\d{0,4})(?:x(?P<layers>[1-9]))?(?P<tied>-tied)?(?:-drop(?P<percent>[1-9]\d?))?"
)
LSTM_EXAMPLES = ("lstm-200", "lstm-200x2-tied", "lstm-650x2-tied-drop50")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """What a language model reads in one step: lanes side by side, each a run of tokens of one sequence.

    Attributes:
        tokens: (B, L) int64; lanes shorter than L are padded at the end with token 0.
        keep: (B, L) bool, where logits are wanted; always False on padding.
        lengths: (B,) int64, tokens of each lane that are no padding.
        carry: (B,) bool, whether a lane goes on where it stopped in the segment before (then a model with a state
            starts from that); None where segments stand alone, as in a dump or an evaluation.
    """

    tokens: Tensor
    keep: Tensor
    lengths: Tensor
    carry: Tensor | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Segment:
        """The segment on a device."""
        return replace(
            self,
            tokens=self.tokens.to(device, non_blocking=non_blocking),
            keep=self.keep.to(device, non_blocking=non_blocking),
            lengths=self.lengths.to(device, non_blocking=non_blocking),
            carry=None if self.carry is None else self.carry.to(device, non_blocking=non_blocking),
        )

    @property
    def shape(self) -> torch.Size:
        """(lanes, tokens of the longest), for messages."""
        return self.tokens.shape

    def __len__(self) -> int:
        """Rows that are kept, which is the number of rows of logits."""
        return int(self.keep.sum())


class LstmLanguageModel(nn.Module):
    """Embedding, LSTM layers of one width, linear head over the vocabulary.

    Between segments that carry on, the hidden state is remembered, cut off from the gradient (truncated
    back-propagation through time); it is no parameter and never saved: an epoch begins without one.

    Args:
        vocabulary: K.
        width: of embedding and hidden state.
        layers: LSTM layers.
        tied: head and embedding share one matrix (Press and Wolf 2017, arXiv:1608.05859).
        dropout: share dropped of the embeddings, between layers and before the head, as Zaremba et al. 2014
            (arXiv:1409.2329) do; never on recurrent connections.
    """

    carries_state = True

    def __init__(self, vocabulary: int, width: int, layers: int = 1, *, tied: bool = False, dropout: float = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocabulary)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.head.weight, -0.1, 0.1)
        nn.init.zeros_(self.head.bias)
        if tied:
            self.head.weight = self.embedding.weight
        self._state: tuple[Tensor, Tensor] | None = None

    def forward(self, segment: Segment) -> Tensor:
        """Logits (R, K) of the R kept rows, lane after lane."""
        features, state = self.lstm(self.drop(self.embedding(segment.tokens)), self._starting_state(segment))
        if segment.carry is not None:
            self._state = (state[0].detach(), state[1].detach())
        logits: Tensor = self.head(self.drop(features[segment.keep]))
        return logits

    def _starting_state(self, segment: Segment) -> tuple[Tensor, Tensor] | None:
        if segment.carry is None or not bool(segment.carry.any()):
            return None
        if self._state is None or self._state[0].shape[1] != len(segment.tokens):
            raise ConfigError(
                f"a segment of {len(segment.tokens)} lanes carries on from one that this model has not read",
                hint="read the segments of an epoch in order, from its first",
            )
        going_on = segment.carry[None, :, None].to(self._state[0].dtype)
        return self._state[0] * going_on, self._state[1] * going_on


def lstm_named(name: str, *, vocabulary: int) -> LstmLanguageModel | None:
    """The LSTM behind `lstm-WIDTH[xLAYERS][-tied][-dropPERCENT]`; None for a name of another form."""
    match = _LSTM.fullmatch(name)
    if match is None:
        return None
    return LstmLanguageModel(
        vocabulary,
        int(match["width"]),
        int(match["layers"] or 1),
        tied=match["tied"] is not None,
        dropout=int(match["percent"] or 0) / 100,
    )


def is_lstm_name(name: str) -> bool:
    """Whether a model name has the form of a built-in LSTM."""
    return _LSTM.fullmatch(name) is not None


def carries_state(module: nn.Module) -> bool:
    """Whether a model's opinion goes on from segment to segment, so that training reads streams in order."""
    return bool(getattr(module, "carries_state", False))


def read_segments(module: nn.Module) -> nn.Module:
    """Let a user's module of (B, L) int64 tokens -> (B, L, K) logits be called with a `Segment`; names stay its own.

    The module must be causal: its answer at a token may not depend on later ones. A module that declares
    `reads_segments = True` gets the `Segment` as it is.
    """
    if getattr(module, "reads_segments", False) or isinstance(module, LstmLanguageModel):
        return module
    waiting: list[Segment] = []

    def unpack(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(arguments) == 1 and isinstance(arguments[0], Segment):
            waiting[:] = arguments
            return (arguments[0].tokens,)
        return arguments

    def select(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> Any:
        segment = waiting.pop() if waiting else None
        if segment is None:
            return output
        if not isinstance(output, Tensor) or output.shape[:2] != segment.tokens.shape or output.ndim != 3:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ConfigError(
                f"a language model gave {found} for tokens {tuple(segment.tokens.shape)}; expected (B, L, K) logits",
                hint="return logits alone, one row for each token",
            )
        return output[segment.keep]

    module.register_forward_pre_hook(unpack)
    module.register_forward_hook(select)
    return module


def example_segment(tokens: Sequence[int]) -> Segment:
    """One lane of a few tokens, all of them kept: to find a model's head, or to try it."""
    row = torch.tensor([list(tokens)], dtype=torch.int64)
    return Segment(tokens=row, keep=torch.ones_like(row, dtype=torch.bool), lengths=torch.tensor([row.shape[1]]))
