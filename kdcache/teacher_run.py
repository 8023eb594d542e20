"""Asking a loaded teacher about rows: a probe before anything is written, then block after block into the store.

Every batch is encoded on the teacher's device in float32; only k numbers a row leave it. Blocks start new batches, so
a resumed dump sees the same batches as a straight one.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.block_pipe import BlockPipe, BlockSink
from kdcache.datasets.identity import row_digests
from kdcache.datasets.sequences import is_sequence
from kdcache.datasets.source import DataSource
from kdcache.errors import IncompatibleError, WeakTeacherError
from kdcache.loader import InputReader
from kdcache.loader.mixing import label_mix
from kdcache.loader.read_ahead import read_ahead
from kdcache.loader.tokens import TokenReader, context_of
from kdcache.models.features import FeatureCollector
from kdcache.models.language import Segment
from kdcache.progress import note
from kdcache.specs import CodecSpec, DatasetSpec, StoreManifest
from kdcache.store.blocks import BlockId
from kdcache.store.layout import feature_type, is_feature
from kdcache.targets.encode import EncodedBatch, encode_topk
from kdcache.targets.sampled import draw_uniforms, encode_sampled
from kdcache.teachers import LoadedTeacher
from kdcache.views.policy import ViewPolicy

PROBE_ROWS = 512
PROBE_RUN = 64  # token rows of a run; one row alone costs as much as all that share its context
WAIT_SECONDS = 0.3  # between two looks for blocks that other workers hold


@dataclass(frozen=True, kw_only=True)
class TeacherQuality:
    """How well the teacher's opinion agrees with the labels.

    Attributes:
        rows: how many rows were compared.
        top1: share of rows whose most probable class is the label; of a mixed row, the label of the larger share.
        nll: mean negative log-probability of the label, in nats; of a mixed row, of both weighted by lambda.
    """

    rows: int
    top1: float
    nll: float

    def check(self, data: DatasetSpec, *, allow_weak: bool) -> None:
        """Refuse a teacher that is no better than guessing.

        The bound is three standard deviations of the number right by chance, so that a class order permuted or a
        wrong normalisation is caught and a small data set is not refused by bad luck.

        Raises:
            WeakTeacherError: top-1 is near chance and `allow_weak` is not set.
        """
        chance = 1.0 / data.num_classes
        bound = chance + 3.0 * math.sqrt(chance * (1.0 - chance) / self.rows)
        if self.top1 > bound or allow_weak:
            if self.nll > math.log(data.num_classes):
                note(
                    f"the teacher's NLL is above log K = {math.log(data.num_classes):.2f} nats: of these rows and "
                    "views its opinion is worse than none; check preprocessing and --augment"
                )
            return
        raise WeakTeacherError(
            f"teacher is near chance on {data.name!r} ({data.split}): top-1 {self.top1:.2%} on {self.rows} rows, NLL "
            f"{self.nll:.2f} nats; expected more than {bound:.2%} (chance is {chance:.2%}, log K is "
            f"{math.log(data.num_classes):.2f})",
            hint="check weights, class order and preprocessing; --allow-weak-teacher keeps it all the same",
        )


class TeacherRun:
    """A teacher, a data set and the settings that turn rows into encoded opinions.

    Args:
        source: rows in store order.
        teacher: module in eval mode on its device, with its preprocessing.
        codec: how much of each opinion is kept.
        policy: replayable views, or None for the plain example.
        decode_workers: processes that decode examples.
        samples: classes drawn per row and view besides the top k (for rskd); 0 draws none.
        sample_seed: decides the draws, together with row and view.
        features: the store's feature arrays to fill, such as "features/penultimate".
    """

    def __init__(
        self,
        source: DataSource,
        teacher: LoadedTeacher,
        codec: CodecSpec,
        policy: ViewPolicy | None,
        *,
        decode_workers: int = 0,
        samples: int = 0,
        sample_seed: int = 0,
        features: Sequence[str] = (),
    ) -> None:
        self._samples, self._sample_seed = samples, sample_seed
        self._source = source
        self._teacher = teacher
        self.teacher_seconds = 0.0  # inside forward passes of the CPU; an accelerator's end after the call
        self._codec = codec
        self._fields = {field.partition("/")[2]: field for field in features}
        self._collector = FeatureCollector(teacher.module, teacher.feature_points(tuple(self._fields)))
        self._reader: InputReader | TokenReader
        if is_sequence(source):
            self._reader = TokenReader(source, context=context_of(teacher.spec.preprocessing), device=teacher.device)
        else:
            self._reader = InputReader(
                source,
                teacher.preprocessing,
                policy,
                workers=decode_workers,
                device=teacher.device,
                take_digests=True,
            )

    @classmethod
    def for_store(
        cls,
        manifest: StoreManifest,
        source: DataSource,
        teacher: LoadedTeacher,
        policy: ViewPolicy | None,
        *,
        decode_workers: int = 0,
    ) -> TeacherRun:
        """A run that gives everything the blocks of such a store hold."""
        return cls(
            source,
            teacher,
            manifest.codec,
            policy,
            decode_workers=decode_workers,
            samples=manifest.samples,
            sample_seed=manifest.views.seed,
            features=[field for field in manifest.codec.fields if is_feature(field)],
        )

    def probe(self, *, batch_size: int, rows: int = PROBE_ROWS) -> TeacherQuality:
        """Quality on rows spread evenly over the data set (sorted data sets would fool a look at the first block)."""
        count = min(rows, len(self._source), max(64, len(self._source) // 64))  # 1.6 % of the dump itself
        chosen = probe_rows(len(self._source), count, run=PROBE_RUN if is_sequence(self._source) else 1)
        batches = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
        right, nll = 0, 0.0
        for batch in self.encoded(batches, view=0):
            right += int(batch.correct.sum())
            nll += float(batch.label_nll.double().sum())
        return TeacherQuality(rows=len(chosen), top1=right / len(chosen), nll=nll / len(chosen))

    def forward(self, batches: Iterable[NDArray[np.int64]], *, view: int) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Logits (B, K) float32 on the teacher's device and their row numbers, batch after batch.

        On a GPU the next batches are read meanwhile; `batches` is then asked for its items in a second thread.
        """
        device = self._teacher.device
        read: Iterator[tuple[Tensor | Segment, NDArray[np.int64]]] = self._reader.batches(iter(batches), view=view)
        # On a CPU reading and the model share the cores, so a second thread has nothing to overlap with.
        if device.type != "cpu":
            read = read_ahead(read, device)
        with torch.inference_mode(), _plain_arithmetic(), self._collector:
            for inputs, rows in read:
                started = time.perf_counter()
                logits = self._teacher.logits(inputs)
                self.teacher_seconds += time.perf_counter() - started
                self._check_shape(logits, len(rows))
                yield logits, rows

    def encoded(self, batches: Iterable[NDArray[np.int64]], *, view: int) -> Iterator[EncodedBatch]:
        """Encoded opinions of batches of row numbers, in order, on the teacher's device."""
        for logits, rows in self.forward(batches, view=view):
            yield self._encode(logits, rows, view, check=True)

    def columns(self, batches: Iterable[NDArray[np.int64]], *, view: int) -> dict[str, NDArray[np.generic]]:
        """Everything a store would hold of these rows, in the order given: array name -> (rows, ...) on the host."""
        kept = list(batches)
        parts = [
            {**{name: column.numpy() for name, column in batch.columns().items()}, **self._known_columns(rows, view)}
            for batch, rows in zip(self.encoded(kept, view=view), kept, strict=True)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def fill(
        self,
        writer: BlockSink,
        *,
        batch_size: int,
        on_block: Callable[[BlockId], None] | None = None,
        between: Callable[[], object] | None = None,
    ) -> None:
        """Ask the teacher about every block that `writer` hands out and commit the answers beside the forward pass.

        Ends when every block is committed; with several workers it waits for the others' blocks, and takes over those
        that are given up.

        Args:
            writer: where blocks come from and go to.
            batch_size: rows per forward pass; every block starts a new batch.
            on_block: called after each commit, in the writing thread.
            between: called after each batch and while waiting, in this thread.
        """
        between = between or _nothing
        with BlockPipe(writer, on_block=lambda block, _: on_block(block) if on_block else None) as pipe:
            while views := writer.views_left():
                done = [self._fill_view(pipe, writer, view, batch_size, between) for view in views]
                if not any(done):
                    pipe.check()
                    between()
                    time.sleep(WAIT_SECONDS)

    def _fill_view(
        self, pipe: BlockPipe, writer: BlockSink, view: int, batch_size: int, between: Callable[[], object]
    ) -> int:
        """Do the blocks of a view that can be claimed; how many."""
        planned: deque[BlockId] = deque()
        claimed = 0

        def batches() -> Iterator[NDArray[np.int64]]:
            nonlocal claimed
            while (block := writer.claim(view)) is not None:
                claimed += 1
                for start in range(block.start, block.stop, batch_size):
                    planned.append(block)
                    yield np.arange(start, min(start + batch_size, block.stop), dtype=np.int64)

        for logits, rows in self.forward(batches(), view=view):
            batch = self._encode(logits, rows, view, check=logits.device.type == "cpu")
            pipe.put(planned.popleft(), batch, self._known_columns(rows, view), first_row=int(rows[0]))
            between()
        return claimed

    def _encode(self, logits: Tensor, rows: NDArray[np.int64], view: int, *, check: bool) -> EncodedBatch:
        mix = self._reader.mixing(rows, view) if isinstance(self._reader, InputReader) else None
        batch = encode_topk(
            logits,
            torch.from_numpy(self._source.labels[rows]),
            topk=self._codec.topk,
            tail_numbers=self._codec.tail_numbers,
            first_row=int(rows[0]),
            mix=None if mix is None else label_mix(mix, self._source.labels),
            check=check,
        )
        if self._fields:
            batch = replace(batch, features=self._features(len(rows)))
        if not self._samples:
            return batch
        uniforms = draw_uniforms(rows, seed=self._sample_seed, view=view, draws=self._samples)
        index, count = encode_sampled(logits, torch.from_numpy(uniforms))
        return replace(batch, sample_index=index, sample_count=count)

    def _features(self, rows: int) -> dict[str, Tensor]:
        """What the last forward pass left at the places asked for, in the types it is kept in."""
        types = {"float16": torch.float16, "float32": torch.float32}
        taken = self._collector.take(rows)
        return {field: taken[name].to(types[feature_type(field)]) for name, field in self._fields.items()}

    def _known_columns(self, rows: NDArray[np.int64], view: int) -> Mapping[str, NDArray[np.generic]]:
        columns = dict(self._reader.view_columns(rows, view))
        if view == 0 and "row_digest" not in columns:
            columns["row_digest"] = row_digests(self._source, rows)
        return columns

    def _check_shape(self, logits: Tensor, rows: int) -> None:
        expected = (rows, self._source.num_classes)
        if tuple(logits.shape) != expected:
            raise IncompatibleError(
                f"teacher {self._teacher.spec.source!r} gave logits of shape {tuple(logits.shape)}; "
                f"expected {expected} for the {self._source.num_classes} classes of {self._source.name!r}",
                hint="choose a teacher and data set with the same classes",
            )


def probe_rows(num_rows: int, count: int, *, run: int = 1) -> NDArray[np.int64]:
    """About `count` rows spread evenly, ascending; in runs of `run` neighbours, which share their context."""
    starts = np.linspace(0, num_rows - 1, max(1, count // run)).astype(np.int64)
    return np.unique(np.minimum(starts[:, None] + np.arange(run), num_rows - 1))


def _nothing() -> None:
    pass


@contextlib.contextmanager
def _plain_arithmetic() -> Iterator[None]:
    """Fixed kernels and real float32 on CUDA: the same rows must give the same bits when a dump is continued."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
