"""Step of a word model from a store of k = 64 against cross-entropy, K = 10,000: bench id `token-step`.

As `distill`, for token rows: 20 lanes of 35 words through an LSTM student, all sides in turn, a ratio is a side's time
over the mean of the two cross-entropy measurements beside it, its figure the median over rounds with a bootstrap
interval; `ratio_cpu` is the same of processor time. `ce again` is a second cross-entropy student: its distance from 1
is the noise. `loss` is the loss alone, forwards and backwards to the logits, in microseconds of processor time a row.
With --ptb and --weights the rows are real text and the teacher a trained lstm-100.

    OMP_NUM_THREADS=1 python -m benchmarks.token_step [--rounds 8] [--student NAME] [--ptb FOLDER --weights FILE]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.distill import Cost, Loss, figures_of, interleaved, loss_of
from benchmarks.machine import report
from benchmarks.tokens import CASES, new_manifest, teacher_choice, words
from kdcache.datasets.cards import open_dataset
from kdcache.datasets.sequences import TokenSource
from kdcache.loader.target_store import TargetStore, open_store
from kdcache.models.registry import build_model
from kdcache.specs import PreprocessingSpec
from kdcache.store.writer import StoreWriter
from kdcache.teacher_run import TeacherRun
from kdcache.teachers import TeacherRequest
from kdcache.training.batch import Batch
from kdcache.training.token_rows import TokenFeed

STUDENT = "lstm-200-tied-drop20"
LANES, SEGMENT, STEPS = 20, 35, 2
ROWS = 10 * LANES * SEGMENT
METHODS = ("kd", "kd-topk", "kd-pt")


def store_of(source: TokenSource, folder: Path, weights: str) -> TargetStore:
    """A sealed store of the case's teacher over the rows."""
    with teacher_choice("lstm", CASES["lstm"], weights) as choice:
        teacher = TeacherRequest.resolve(choice, source).load(source, torch.device("cpu"))
    manifest = new_manifest(source, teacher, 1024)
    with StoreWriter.open(folder, manifest, static=teacher.static) as writer:
        TeacherRun(source, teacher, manifest.codec, None).fill(writer, batch_size=1024)
        writer.seal()
    return open_store(folder)


class TokenSide:
    """One student with its optimizer, fed for one loss."""

    def __init__(self, student: str, loss: Loss, source: TokenSource, store: TargetStore | None) -> None:
        torch.manual_seed(0)
        self._model = build_model(
            student, num_classes=source.num_classes, input_shape=(), data=PreprocessingSpec()
        ).module
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=0.1)
        self._loss = loss
        labels = torch.from_numpy(source.labels)
        feed = TokenFeed(source, labels, batch_size=LANES * SEGMENT, segment=SEGMENT, carry=True, seed=0, store=store)
        self._batches: Iterator[Batch] = itertools.chain.from_iterable(map(feed.epoch, itertools.count()))

    def cost(self) -> Cost:
        """Mean of some steps: read, gather, forward, loss, backward, update."""
        started = np.array([time.perf_counter(), time.process_time()])
        for batch in itertools.islice(self._batches, STEPS):
            logits = self._model(batch.inputs)
            self._loss(logits, batch).mean().backward()
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        return (np.array([time.perf_counter(), time.process_time()]) - started) / STEPS


def loss_us(losses: dict[str, Loss], source: TokenSource, store: TargetStore, rounds: int) -> dict[str, float]:
    """Median microseconds of processor time a row of each loss with its gradient to the logits, in turn."""
    feed = TokenFeed(
        source, torch.from_numpy(source.labels), batch_size=LANES * SEGMENT, segment=SEGMENT, carry=True, seed=0,
        store=store,
    )  # fmt: skip
    taken: dict[str, list[float]] = {name: [] for name in losses}
    generator = torch.Generator().manual_seed(0)
    for batch in itertools.islice(feed.epoch(0), rounds):
        values = torch.randn(len(batch.rows), source.num_classes, generator=generator)
        for name, loss in losses.items():
            logits = values.clone().requires_grad_()
            started = time.process_time()
            loss(logits, batch).mean().backward()
            taken[name].append((time.process_time() - started) / len(values) * 1e6)
    return {name: round(statistics.median(several[1:]), 1) for name, several in taken.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--student", default=STUDENT)
    parser.add_argument("--ptb", type=Path, default=None, help="folder that holds ptb/")
    parser.add_argument("--weights", default="", help="a trained lstm-100 of PTB")
    asked = parser.parse_args()
    if asked.ptb is None:
        whole = words(CASES["lstm"])
        source = TokenSource.from_tokens(
            whole.tokens[: ROWS + 1], name="zipf", split="train", num_classes=whole.num_classes
        )
    else:
        opened = open_dataset("ptb", split=f"train[:{ROWS}]", root=asked.ptb)
        assert isinstance(opened, TokenSource)
        source = opened
    with tempfile.TemporaryDirectory(prefix="kdcache-bench-") as folder:
        store = store_of(source, Path(folder) / "store.zarr", asked.weights)
        losses = {name: loss_of(name, store) for name in METHODS}
        plain = TokenSide(asked.student, loss_of("ce", None), source, None)
        sides = {"ce again": TokenSide(asked.student, loss_of("ce", None), source, None)}
        sides |= {name: TokenSide(asked.student, loss, source, store) for name, loss in losses.items()}
        found = {
            name: figures_of(pairs, LANES * SEGMENT) for name, pairs in interleaved(plain, sides, asked.rounds).items()
        }
        alone = loss_us({"ce": loss_of("ce", None), **losses}, source, store, asked.rounds)
    report("token-step", {"student": asked.student, "batch": LANES * SEGMENT, "loss": alone, **found})


if __name__ == "__main__":
    main()
