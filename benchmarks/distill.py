"""Seconds per training step from a store against a plain cross-entropy step, in one run: bench id `distill`.

Both sides read the same inputs and train the same student; only targets and loss differ. Every round takes one
measurement of each side in a random order, between two of cross-entropy; a ratio is a side's time over the mean of
those two, its figure the median over rounds with a bootstrap interval. `ce again` is a second cross-entropy student:
its distance from 1 is the noise. `ratio_cpu` is the same of processor time, which other work on the machine disturbs
less. `live` distils the same batch from the logits of a live teacher. The student of
interest, resnet8x4, has small batches, so that many rounds fit: the fixed part of the overhead then weighs four times
what it does at 128 rows. Random weights and noise images: arithmetic does not depend on them. The loader's parts per
batch are measured one by one, and together (`whole`).

    OMP_NUM_THREADS=1 python -m benchmarks.distill [--rounds N] [--student mlp-32 --student resnet8x4 ...]
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.dump import MEAN_STD, images, loaded
from benchmarks.live import dense_kd
from benchmarks.machine import median_interval, report
from kdcache.datasets.identity import dataset_spec
from kdcache.datasets.source import ArraySource
from kdcache.loader.inputs import InputReader
from kdcache.loader.target_store import TargetStore, open_store
from kdcache.models.preprocess import Preprocessing
from kdcache.models.registry import build_model
from kdcache.specs import CodecSpec, StoreManifest, ViewSpec
from kdcache.store.blocks import block_rows_for
from kdcache.store.writer import StoreWriter
from kdcache.targets.methods import find_method
from kdcache.teacher_run import TeacherRun
from kdcache.training.batch import Batch, TrainingFeed
from kdcache.training.objective import Objective
from kdcache.views.policy import ViewPolicy

ROWS, CLASSES, LOADER_BATCH = 8192, 100, 128
METHODS = ("kd", "kd-topk", "dkd")
LIVE_TEACHERS = {"resnet8x4": ("resnet32x4", "wrn-40-2")}
LIVE_ROUNDS = 6
TEMPERATURE, ALPHA = 4.0, 0.9


@dataclass(frozen=True)
class Case:
    """How one student is measured: rows per step, rounds, steps per measurement."""

    batch: int
    rounds: int
    steps: int


CASES = {"mlp-32": Case(128, 40, 20), "resnet8": Case(64, 25, 1), "resnet8x4": Case(32, 25, 1)}
Loss = Callable[[Tensor, Batch], Tensor]
Cost = np.ndarray  # (2,) seconds of one step: wall, processor


def store_of(source: ArraySource, folder: Path, topk: int) -> TargetStore:
    """A sealed store of a small random teacher over the rows."""
    teacher = loaded("mlp-32", source, torch.device("cpu"))
    manifest = StoreManifest(
        format_version=1,
        dataset=dataset_spec(source, card=""),
        teacher=teacher.spec,
        views=ViewSpec(),
        codec=CodecSpec(topk=topk, fields=tuple(sorted(teacher.static))),
        num_views=1,
        block_rows=block_rows_for(len(source)),
        static_shapes={name: list(array.shape) for name, array in teacher.static.items()},
        creator={"batch_size": 512},
    )
    with StoreWriter.open(folder, manifest, static=teacher.static) as writer:
        run = TeacherRun(source, teacher, manifest.codec, None)
        run.fill(writer, batch_size=512)
        writer.seal()
    return open_store(folder)


def loss_of(method: str, store: TargetStore | None) -> Loss:
    """The product's loss of a method with its defaults."""
    chosen = find_method(method)
    objective = Objective(method=chosen)
    if store is not None:
        objective = Objective(method=chosen, context=chosen.prepare(store, options={}, temperature=None))
    return lambda logits, batch: objective(logits, batch, 0.0)


def live_loss(teacher: str, source: ArraySource) -> Loss:
    """kd from the dense logits of a teacher that runs in every step."""
    running = loaded(teacher, source, torch.device("cpu"))

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        with torch.inference_mode():
            opinion = running.logits(batch.inputs)
        return dense_kd(logits, opinion.clone(), batch.labels, temperature=TEMPERATURE, alpha=ALPHA)

    return loss


class Side:
    """One student with its optimizer, fed for one loss."""

    def __init__(self, student: str, loss: Loss, source: ArraySource, store: TargetStore | None, case: Case) -> None:
        torch.manual_seed(0)
        self._model: nn.Module = build_model(
            student, num_classes=CLASSES, input_shape=(3, 32, 32), data=MEAN_STD
        ).module
        self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        self._loss = loss
        self._steps = case.steps
        feed = TrainingFeed(
            InputReader(source, Preprocessing(MEAN_STD)),
            torch.from_numpy(source.labels),
            batch_size=case.batch,
            seed=0,
            store=store,
        )
        self._batches: Iterator[Batch] = itertools.chain.from_iterable(map(feed.epoch, itertools.count()))

    def cost(self) -> Cost:
        """Mean of some steps: read, gather, forward, loss, backward, update."""
        started = np.array([time.perf_counter(), time.process_time()])
        for batch in itertools.islice(self._batches, self._steps):
            logits = self._model(batch.inputs.to(memory_format=torch.channels_last))
            self._loss(logits, batch).mean().backward()
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        return (np.array([time.perf_counter(), time.process_time()]) - started) / self._steps


class Stepping(Protocol):
    """What takes a few training steps when asked."""

    def cost(self) -> Cost:
        """Mean seconds of a step."""
        ...


def interleaved(plain: Stepping, sides: Mapping[str, Stepping], rounds: int) -> dict[str, list[tuple[Cost, Cost]]]:
    """(cost of a side, cost of cross-entropy beside it) per round."""
    order, costs = list(sides), {name: list[tuple[Cost, Cost]]() for name in sides}
    for side in (plain, *sides.values()):
        side.cost()
    draw = random.Random(0)
    for _ in range(rounds):
        draw.shuffle(order)
        before = plain.cost()
        for two in (order[start : start + 2] for start in range(0, len(order), 2)):
            found = [(name, sides[name].cost()) for name in two]
            after = plain.cost()
            for name, cost in found:
                costs[name].append((cost, (before + after) / 2))
            before = after
    return costs


def figures_of(pairs: list[tuple[Cost, Cost]], batch: int) -> dict[str, object]:
    """Milliseconds, ratios with their intervals, and what a row costs beyond cross-entropy."""
    ratios = np.array([cost / plain for cost, plain in pairs])
    return {
        "ms_per_step": round(statistics.median(float(cost[0]) for cost, _ in pairs) * 1e3, 3),
        "ce_ms_per_step": round(statistics.median(float(plain[0]) for _, plain in pairs) * 1e3, 3),
        "ratio": median_and_interval(ratios[:, 0]),
        "ratio_cpu": median_and_interval(ratios[:, 1]),
        "overhead_cpu_us_per_row": round(statistics.median(float((c - p)[1]) for c, p in pairs) / batch * 1e6, 2),
    }


def median_and_interval(values: np.ndarray) -> str:
    """Median [low, high] (95 %), as text so that a line of the report is a line."""
    low, high = median_interval(values.tolist())
    return f"{np.median(values):.3f} [{low:.3f}, {high:.3f}]"


def measure(student: str, source: ArraySource, stores: dict[str, TargetStore], case: Case) -> dict[str, object]:
    """Every method and store of one student against cross-entropy, then live distillation against both."""

    def side(loss: Loss, store: TargetStore | None) -> Side:
        return Side(student, loss, source, store, case)

    plain = side(loss_of("ce", None), None)
    sides = {"ce again": side(loss_of("ce", None), None)}
    for label, store in stores.items():
        sides |= {f"{method} {label}": side(loss_of(method, store), store) for method in METHODS}
    found = {name: figures_of(pairs, case.batch) for name, pairs in interleaved(plain, sides, case.rounds).items()}
    live = {f"live {name}": side(live_loss(name, source), None) for name in LIVE_TEACHERS.get(student, ())}
    if live:
        again = interleaved(plain, {"kd k=10": sides["kd k=10"], **live}, min(LIVE_ROUNDS, case.rounds))
        stored = statistics.median(float(cost[0]) for cost, _ in again["kd k=10"])
        for name in live:
            speedup = statistics.median(float(cost[0]) for cost, _ in again[name]) / stored
            found[name] = {**figures_of(again[name], case.batch), "over_kd_from_store": round(speedup, 2)}
    return {"batch": case.batch, "rounds": case.rounds, **found}


def loader_us(source: ArraySource, stores: dict[str, TargetStore], *, repeats: int = 300) -> dict[str, float]:
    """Median microseconds per batch of 128 CIFAR-sized rows in each part of the loader, and of all together."""
    rows = np.random.default_rng(0).permutation(ROWS)[:LOADER_BATCH].copy()
    index = torch.from_numpy(rows)
    pixels = torch.from_numpy(source.examples).permute(0, 3, 1, 2).contiguous()
    policy, preprocessing = ViewPolicy.from_preset("cifar", seed=0), Preprocessing(MEAN_STD)
    sizes = np.broadcast_to(np.array([32, 32]), (LOADER_BATCH, 2))
    outcomes = policy.sample(rows, 0, sizes=sizes, num_rows=ROWS)
    packed = policy.pack(outcomes)
    gathered = torch.index_select(pixels, 0, index)
    shown = policy.apply_batch(gathered, outcomes)
    feed = TrainingFeed(
        InputReader(source, preprocessing, policy),
        torch.from_numpy(source.labels),
        batch_size=LOADER_BATCH,
        seed=0,
        store=stores["k=10"],
    )
    batches = itertools.chain.from_iterable(map(feed.epoch, itertools.count()))
    parts: dict[str, Callable[[], object]] = {
        "view: draw the outcomes": lambda: policy.sample(rows, 0, sizes=sizes, num_rows=ROWS),
        "view: or unpack stored ones": lambda: policy.unpack(packed),
        "view: change the pixels": lambda: policy.apply_batch(gathered, outcomes),
        "gather: pixels": lambda: torch.index_select(pixels, 0, index),
        **{f"gather: targets {label}": lambda store=store: store.targets(index) for label, store in stores.items()},
        "copy: to float on the device": lambda: preprocessing.batch(shown.to("cpu")),
        "whole: drawn view, k=10": lambda: next(batches),
    }
    return {name: median_us(part, repeats) for name, part in parts.items()}


def median_us(action: Callable[[], object], repeats: int) -> float:
    """Median microseconds of a call, after one that does not count."""
    action()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return round(statistics.median(times) * 1e6, 1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=None, help="instead of each student's own number")
    parser.add_argument("--student", action="append", choices=list(CASES), default=None)
    arguments = parser.parse_args()
    source = images(ROWS, 32, CLASSES)
    with tempfile.TemporaryDirectory(prefix="kdcache-bench-") as folder:
        stores = {f"k={k}": store_of(source, Path(folder) / str(k), k) for k in (10, CLASSES)}
        found: dict[str, object] = {f"loader, us per batch of {LOADER_BATCH}": loader_us(source, stores)}
        for student in arguments.student or CASES:
            case = CASES[student]
            case = Case(case.batch, arguments.rounds or case.rounds, case.steps)
            found[student] = measure(student, source, stores, case)
    report("distill", found)


if __name__ == "__main__":
    main()
