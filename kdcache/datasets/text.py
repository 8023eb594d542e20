"""Word-level text: one file per split, a line is a sentence, its end is the word `<eos>`. One sequence per split.

This is how Penn Treebank is used as a language model's benchmark (Mikolov's preparation): words are separated by
spaces, and the vocabulary is what occurs in the training file, numbered by first appearance.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdcache.datasets.sequences import TokenSource
from kdcache.errors import IncompatibleError, NotFoundError

END = "<eos>"


def open_text(path: Path, *, vocabulary_from: Path, name: str, split: str) -> TokenSource:
    """Read a text file as one sequence of word ids.

    Args:
        path: the split's file, UTF-8.
        vocabulary_from: the training file, whose words are the vocabulary.
        name, split: as in the data card.

    Raises:
        NotFoundError: a file is not there.
        IncompatibleError: it is no text, is too short, or has a word the training file has not.
    """
    vocabulary = read_vocabulary(vocabulary_from)
    return TokenSource.from_tokens(
        _ids(_words(path), vocabulary, path), name=name, split=split, num_classes=len(vocabulary)
    )


def read_vocabulary(path: Path) -> dict[str, int]:
    """Word -> id, by first appearance in a file.

    Raises:
        NotFoundError, IncompatibleError: as `open_text`.
    """
    return {word: number for number, word in enumerate(dict.fromkeys(_words(path)))}


def _words(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise NotFoundError(f"text {path}: no such file", hint="kdcache datasets says how to obtain it") from None
    except UnicodeDecodeError as error:
        raise IncompatibleError(f"text {path}: not UTF-8 ({error})") from error
    words = [word for line in lines for word in (*line.split(), END)]
    if len(words) < 2:
        raise IncompatibleError(f"text {path}: {len(words)} words; expected at least 2")
    return words


def _ids(words: list[str], vocabulary: Mapping[str, int], path: Path) -> NDArray[np.int64]:
    try:
        return np.fromiter((vocabulary[word] for word in words), dtype=np.int64, count=len(words))
    except KeyError as error:
        raise IncompatibleError(
            f"text {path}: the word {error.args[0]!r} is not in the training file's vocabulary",
            hint="replace rare words by <unk> in every file, as PTB does",
        ) from None
