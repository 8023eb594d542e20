"""Token rows: row i is one token of a sequence, its label the token that follows. No torch, no reading order.

A sequence of n + 1 tokens gives n rows, so every row has a label and none is made up: the last token of a sequence is
only ever a label. A corpus is one long sequence (PTB) or many (documents); rows of different sequences never see each
other. Rows that should not count (a prompt, padding someone stored) are marked by a mask; they keep their row numbers.
"""

from __future__ import annotations

import hashlib
from typing import Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kdcache.datasets.source import DataSource
from kdcache.errors import IncompatibleError
from kdcache.specs import DatasetSpec

DIGEST_TOKENS = 8  # a row's raw bytes are its last tokens: one token of a vocabulary repeats, eight hardly do


@runtime_checkable
class SequenceSource(DataSource, Protocol):
    """A `DataSource` whose rows are tokens in order.

    Attributes:
        tokens: (N,) uint32, what a model reads at each row; `labels` holds what follows it.
        sequence_offsets: (S + 1,) int64; rows [offsets[s], offsets[s + 1]) are sequence s, none is empty.
        mask: (N,) bool, the rows that count in losses and figures, or None: all of them.
    """

    tokens: NDArray[np.uint32]
    sequence_offsets: NDArray[np.int64]
    mask: NDArray[np.bool_] | None


class TokenSource:
    """Token rows in memory (or memory-mapped).

    Args:
        tokens: (N,) token ids in [0, K), what is read.
        labels: (N,) token ids in [0, K), what follows.
        offsets: (S + 1,) row numbers from 0 to N, ascending.
        name, split: as in the data card.
        num_classes: K, the size of the vocabulary.
        mask: (N,) bool, rows that count; None for all.

    Raises:
        IncompatibleError: arrays of different lengths, offsets that are no partition of the rows, ids outside [0, K),
            or a mask without a row that counts.
    """

    identity = "full"

    def __init__(
        self,
        tokens: NDArray[np.integer],
        labels: NDArray[np.integer],
        offsets: NDArray[np.integer],
        *,
        name: str,
        split: str,
        num_classes: int,
        mask: NDArray[np.bool_] | None = None,
    ) -> None:
        self.name = name
        self.split = split
        self.num_classes = num_classes
        self.class_names: tuple[str, ...] = ()  # a vocabulary of 150,000 words does not belong in a manifest
        subject = f"data set {name!r} split {split!r}"
        self.sequence_offsets: NDArray[np.int64] = np.ascontiguousarray(offsets, dtype=np.int64)
        self.mask = None if mask is None else np.ascontiguousarray(mask, dtype=np.bool_)
        _check_shapes(subject, tokens, labels, self.sequence_offsets, self.mask)
        _check_ids(subject, "token", tokens, num_classes)
        self.tokens: NDArray[np.uint32] = np.ascontiguousarray(tokens, dtype="<u4")
        self.labels: NDArray[np.int64] = np.ascontiguousarray(labels, dtype=np.int64)
        self._nearby = (0, 0)

    @classmethod
    def from_tokens(
        cls,
        tokens: NDArray[np.integer],
        lengths: NDArray[np.integer] | None = None,
        *,
        name: str,
        split: str,
        num_classes: int,
        mask: NDArray[np.bool_] | None = None,
    ) -> TokenSource:
        """Rows of whole sequences laid end to end: the last token of each is only a label.

        Args:
            tokens: (M,) token ids of all sequences.
            lengths: tokens of each sequence, at least 2 each, M in all; None: one sequence.
            mask: (M,) bool: whether a token counts when it is predicted; the first of a sequence never is.

        Raises:
            IncompatibleError: a sequence of fewer than 2 tokens, or lengths that do not add up to M.
        """
        sizes = np.array([len(tokens)] if lengths is None else lengths, dtype=np.int64)
        subject = f"data set {name!r} split {split!r}"
        if sizes.ndim != 1 or not len(sizes) or int(sizes.sum()) != len(tokens):
            raise IncompatibleError(
                f"{subject}: sequences of {int(sizes.sum())} tokens in all, found {len(tokens)} tokens",
                hint="give one length for each sequence",
            )
        if int(sizes.min()) < 2:
            short = int(np.flatnonzero(sizes < 2)[0])
            raise IncompatibleError(
                f"{subject}: sequence {short} has {int(sizes[short])} tokens; expected at least 2, one to read and one "
                "to predict",
                hint="leave out sequences of a single token",
            )
        if mask is not None and len(mask) != len(tokens):
            raise IncompatibleError(f"{subject}: a mask of {len(mask)} tokens for {len(tokens)} tokens")
        ends = np.cumsum(sizes)
        read, predicted = np.ones(len(tokens), dtype=np.bool_), np.ones(len(tokens), dtype=np.bool_)
        read[ends - 1] = False
        predicted[ends - sizes] = False
        return cls(
            tokens[read],
            tokens[predicted],
            np.concatenate(([0], np.cumsum(sizes - 1))),
            name=name,
            split=split,
            num_classes=num_classes,
            mask=None if mask is None else mask[predicted],
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def raw(self, row: int) -> bytes:
        """The row's token and up to 7 before it in its sequence, as little-endian uint32."""
        if not self._nearby[0] <= row < self._nearby[1]:  # rows are asked in order: one search for each sequence
            sequence = int(np.searchsorted(self.sequence_offsets, row, side="right")) - 1
            self._nearby = (int(self.sequence_offsets[sequence]), int(self.sequence_offsets[sequence + 1]))
        first = max(self._nearby[0], row + 1 - DIGEST_TOKENS)
        return self.tokens[first : row + 1].tobytes()

    def example(self, row: int) -> NDArray[np.generic]:
        """The row's token, int64 of shape (); what it means depends on the tokens before it (loader/tokens.py)."""
        return np.asarray(self.tokens[row], dtype=np.int64)

    def content(self) -> bytes:
        """Sha256 of everything but the labels: the word "tokens", then offsets, tokens and mask with their lengths."""
        digest = hashlib.sha256(b"tokens\n")
        parts = [self.sequence_offsets.astype("<i8", copy=False), self.tokens]
        parts += [] if self.mask is None else [self.mask.astype(np.uint8)]
        for part in parts:
            digest.update(part.nbytes.to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(part).data)
        return digest.digest()

    def part(self, start: int, stop: int, *, split: str) -> TokenSource:
        """Rows [start, stop) as a data set of their own; a sequence that is cut begins anew at the cut."""
        inside = self.sequence_offsets[(self.sequence_offsets > start) & (self.sequence_offsets < stop)]
        return TokenSource(
            self.tokens[start:stop],
            self.labels[start:stop],
            np.concatenate(([0], inside - start, [stop - start])),
            name=self.name,
            split=split,
            num_classes=self.num_classes,
            mask=None if self.mask is None else self.mask[start:stop],
        )


def is_sequence(source: DataSource) -> TypeGuard[SequenceSource]:
    """Whether a data set's rows are tokens in order."""
    return hasattr(source, "sequence_offsets") and hasattr(source, "tokens")


def counted_rows(source: SequenceSource) -> NDArray[np.int64]:
    """The rows that count in losses and figures, ascending."""
    return np.arange(len(source), dtype=np.int64) if source.mask is None else np.flatnonzero(source.mask)


def check_sequences(
    source: SequenceSource, spec: DatasetSpec, content_digest: str, offsets: NDArray[np.int64] | None
) -> None:
    """Refuse token rows that are not, sequence by sequence, those a store was made from.

    Labels and sampled rows are compared by `identity.check_identity`; here every token and every boundary is.

    Raises:
        IncompatibleError: naming what differs.
    """
    subject = f"data set {source.name!r} split {source.split!r}"
    hint = "give the tokens the store was made from, or dump a store for these with dump-teacher"
    if offsets is None:
        raise IncompatibleError(f"{subject} has token rows, the store has rows that stand alone", hint=hint)
    if not np.array_equal(offsets, source.sequence_offsets):
        raise IncompatibleError(
            f"{subject}: {len(source.sequence_offsets) - 1} sequences, the store has {len(offsets) - 1}, or they are "
            "cut at other rows",
            hint=hint,
        )
    if content_digest != spec.content_digest:
        raise IncompatibleError(
            f"{subject}: content digest {content_digest[:16]}..., the store says {spec.content_digest[:16]}...: its "
            "tokens or its mask differ",
            hint=hint,
        )


def _check_shapes(
    subject: str,
    tokens: NDArray[np.integer],
    labels: NDArray[np.integer],
    offsets: NDArray[np.int64],
    mask: NDArray[np.bool_] | None,
) -> None:
    rows = len(tokens)
    if tokens.ndim != 1 or labels.shape != tokens.shape or (mask is not None and mask.shape != tokens.shape):
        raise IncompatibleError(
            f"{subject}: expected tokens, labels and mask of one length (N,), found {tokens.shape}, {labels.shape}"
            + ("" if mask is None else f" and {mask.shape}")
        )
    whole = offsets.ndim == 1 and len(offsets) > 1 and offsets[0] == 0 and offsets[-1] == rows
    if not whole or bool((np.diff(offsets) < 1).any()):
        raise IncompatibleError(
            f"{subject}: sequence offsets must rise from 0 to {rows} without empty sequences, found "
            f"{offsets[:4].tolist()}{', ...' if len(offsets) > 4 else ''}"
        )
    if mask is not None and not mask.any():
        raise IncompatibleError(f"{subject}: the mask lets no row count")


def _check_ids(subject: str, what: str, ids: NDArray[np.integer], num_classes: int) -> None:
    if not np.issubdtype(ids.dtype, np.integer):
        raise IncompatibleError(f"{subject}: {what}s are {ids.dtype}, expected whole numbers")
    outside = np.flatnonzero((ids < 0) | (ids >= num_classes))
    if len(outside):
        row = int(outside[0])
        raise IncompatibleError(
            f"{subject}: {what} {int(ids[row])} of row {row} is outside 0..{num_classes - 1} "
            f"({len(outside)} such rows)",
            hint="correct the tokens, or the vocabulary's size in the data card",
        )
