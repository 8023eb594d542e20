"""A sealed store as resident tensors: verified and decoded once, then gathered by row number.

Reading rows through Zarr costs 100 ms a batch; a gather from a resident table costs microseconds. Nothing here reads
bytes (that is `store.reader`) or knows about inputs.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.errors import ConfigError, IncompatibleError
from kdcache.loader.features import FeatureTables
from kdcache.loader.mixing import stored_label_mix
from kdcache.specs import CLASS_MEAN_TEMPERATURE, StoreManifest, ViewSpec
from kdcache.store.reader import StoreReader, ViewColumns, open_reader
from kdcache.targets.soft import TARGET_COLUMNS, LabelMix, SoftTargets
from kdcache.targets.tail import narrow
from kdcache.views.mixing import mixes

RESIDENT_VIEWS = 2  # the view in use and the one before or after it; ImageNet at k=10 is 50-70 MB a view
NARROW_ROWS = 65_536  # rows narrowed at a time, so that the float32 copy stays small
SAMPLED = ("sample_index", "sample_count")

Rows = Tensor | NDArray[np.integer] | Sequence[int]


@dataclass(frozen=True, kw_only=True)
class _Table:
    """One view, ready to gather: three tables instead of five, because each gather costs a few microseconds."""

    classes: Tensor  # (N, k + 1) integer: top-k classes, then the label
    log_probs: Tensor  # (N, k + 1) float16 or float32: of the same classes
    tail: Tensor  # (N, 3) or (N, 4)
    view_params: NDArray[np.uint8] | None  # (N, W), always in RAM: they are replayed on the CPU
    sample_index: Tensor | None = None  # (N, m) integer
    sample_count: Tensor | None = None  # (N, m) integer
    mix: LabelMix | None = None  # of all N rows, where the views mix two examples

    def gather(self, rows: Tensor, num_classes: int) -> SoftTargets:
        classes = torch.index_select(self.classes, 0, rows).long()
        log_probs = torch.index_select(self.log_probs, 0, rows).float()
        return SoftTargets(
            index=classes[:, :-1],
            log_prob=log_probs[:, :-1],
            tail=torch.index_select(self.tail, 0, rows).float(),
            label=classes[:, -1],
            label_log_prob=log_probs[:, -1],
            num_classes=num_classes,
            sample_index=_gathered(self.sample_index, rows),
            sample_count=_gathered(self.sample_count, rows),
            mix=None if self.mix is None else self.mix.each(lambda field: torch.index_select(field, 0, rows)),
        )


@dataclass(frozen=True, kw_only=True)
class _MappedTable:
    """A view too large for memory: rows are copied from the reader's local memory maps, batch by batch."""

    columns: ViewColumns
    labels: NDArray[np.int64]
    views: ViewSpec
    topk: int
    device: torch.device

    @property
    def view_params(self) -> NDArray[np.uint8] | None:
        return self.columns.view_params

    def gather(self, rows: Tensor, num_classes: int) -> SoftTargets:
        chosen = rows.cpu().numpy()
        kept = self.columns
        columns = {name: getattr(kept, name)[chosen] for name in TARGET_COLUMNS}
        targets = SoftTargets.from_columns(columns, self.labels[chosen], num_classes=num_classes)
        targets = replace(targets, mix=_label_mix(kept, self.labels, self.views, chosen))
        sampled = {name: kept.optional[name][chosen].astype(np.int64) for name in SAMPLED if name in kept.optional}
        if sampled:
            index, count = (torch.from_numpy(sampled[name]) for name in SAMPLED)
            targets = replace(targets, sample_index=index, sample_count=count)
        return narrow(targets, self.topk).to(self.device, non_blocking=True)


# Tables that a store of this process holds: a second store over the same bytes neither verifies nor decodes again.
_SHARED: weakref.WeakValueDictionary[tuple[str, str, str, int, int], _Table | _MappedTable] = (
    weakref.WeakValueDictionary()
)


class TargetStore:
    """Soft targets by row number; public as `kdcache.open_store`.

    Opening reads metadata only. The first use of a view checks every block against the ledger, decodes it and keeps it
    on `device`; later uses are gathers. At most two views are in memory, however many there are: the one in use and
    the last one, or the one that `prefetch` announced. Safe to share between threads.

    Args:
        reader: an open, sealed store.
        device: where the tables live and targets come out.
    """

    def __init__(self, reader: StoreReader, *, device: torch.device | str = "cpu") -> None:
        self._reader = reader
        self.device = torch.device(device)
        self._tables: OrderedDict[tuple[int, int], _Table | _MappedTable] = OrderedDict()  # by (view, topk)
        self._announced: int | None = None
        self._features = FeatureTables(reader, views=RESIDENT_VIEWS)
        self._lock = threading.RLock()

    @property
    def manifest(self) -> StoreManifest:
        """What the store says about itself."""
        return self._reader.manifest

    @property
    def location(self) -> str:
        """Path or URL of the store."""
        return self._reader.location

    @property
    def num_rows(self) -> int:
        """N, rows of one view."""
        return self.manifest.dataset.num_rows

    @property
    def num_classes(self) -> int:
        """K."""
        return self.manifest.dataset.num_classes

    @property
    def num_views(self) -> int:
        """V."""
        return self.manifest.num_views

    @property
    def topk(self) -> int:
        """k, the classes stored per row."""
        return self.manifest.codec.topk

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) ground truth, verified on first use."""
        return self._reader.labels

    def labels_at(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B,) ground truth of some rows; unlike `labels[rows]` it converts only these."""
        return self._reader.row_array("label")[rows].astype(np.int64)

    @property
    def row_digests(self) -> NDArray[np.uint16]:
        """(N,) digests of the raw examples, verified on first use."""
        return self._reader.row_digests

    @property
    def class_weight(self) -> Tensor | None:
        """(K, D) float32, the teacher's last layer, on `device`; None when the store does not hold it."""
        return self._class_array("class_weight")

    @property
    def class_bias(self) -> Tensor | None:
        """(K,) float32, the bias of the teacher's last layer, on `device`; None when the store does not hold it."""
        return self._class_array("class_bias")

    def class_mean(self, temperature: float) -> Tensor | None:
        """(K, K) float32, mean p^T of each class's rows, on `device`; None when the store keeps none for this T."""
        kept = self.manifest.quality.get(CLASS_MEAN_TEMPERATURE)
        return self._class_array("class_mean") if kept == temperature else None

    def _class_array(self, name: str) -> Tensor | None:
        held = name in self.manifest.codec.fields
        return torch.from_numpy(np.array(self._reader.static(name), np.float32)).to(self.device) if held else None

    @property
    def sequence_offsets(self) -> NDArray[np.int64] | None:
        """(S + 1,) where the sequences of token rows begin and end; None for rows that stand alone."""
        if "sequence_offsets" not in self.manifest.codec.fields:
            return None
        return np.array(self._reader.static("sequence_offsets"), dtype=np.int64)

    def __len__(self) -> int:
        return self.num_rows

    def targets(self, rows: Rows, view: int = 0, topk: int | None = None) -> SoftTargets:
        """The teacher's opinion of some rows.

        Args:
            rows: B row numbers in [0, N), any order, repeats allowed; int64 tensor (any device), array or list.
            view: view number in [0, V).
            topk: keep only the first k' <= k classes, the rest joins the tail exactly; None keeps all k.

        Returns:
            Soft targets of B rows on the store's device.

        Raises:
            ConfigError: a row, view or topk outside its range.
            ChecksumError: the first use of this view found damaged bytes.
        """
        table = self._table(view, self.topk if topk is None else topk)
        return table.gather(self._checked_rows(rows), self.num_classes)

    def features(self, name: str, rows: Rows, view: int = 0) -> Tensor:
        """What passed inside the teacher for some rows, (B, ...) float32 on the store's device.

        Args:
            name: "penultimate", "layer3", ...: as it was dumped with --features.
            rows: as for `targets`.
            view: view number in [0, V).

        Raises:
            IncompatibleError: the store has no such feature. ConfigError, ChecksumError: as `targets`.
        """
        chosen = self._checked_rows(rows).cpu().numpy()
        return self._features.gather(name, chosen, view).to(self.device, non_blocking=True)

    def view_params(self, rows: NDArray[np.int64], view: int) -> NDArray[np.uint8]:
        """(B, W) uint8: the packed outcomes of the random choices that made these rows' views.

        Raises:
            IncompatibleError: the store holds no augmented views.
        """
        with self._lock:
            held = next((table for (of, _), table in self._tables.items() if of == view), None)
            packed = self._reader.view(view).view_params if held is None else held.view_params
        if packed is None:
            raise IncompatibleError(f"{self.location} holds no view parameters: its views are the plain examples")
        return packed[rows]

    def prefetch(self, view: int) -> None:
        """Say which view is wanted next: it is verified and decoded in the background while this one is in use.

        Call it when the view in use has been asked for once; of other views only that one stays in memory. A view of a
        growing store that is not committed yet is left alone.

        Raises:
            ConfigError: no such view. Damage in it is raised where its targets are asked for.
        """
        with self._lock:
            if any(of == view for of, _ in self._tables) or self._announced == view or not self._reader.has_view(view):
                return
            self._reader.prefetch(view)
            self._announced = view
            self._keep_tables(1)

    def batches(self, batch_size: int = 8192, *, view: int = 0, topk: int | None = None) -> Iterator[SoftTargets]:
        """All rows of a view in order, for statistics over the store."""
        for start in range(0, self.num_rows, batch_size):
            yield self.targets(torch.arange(start, min(start + batch_size, self.num_rows)), view, topk)

    def __iter__(self) -> Iterator[SoftTargets]:
        return self.batches()

    def _checked_rows(self, rows: Rows) -> Tensor:
        index = rows if isinstance(rows, Tensor) else torch.as_tensor(np.asarray(rows))
        if index.ndim != 1 or index.dtype.is_floating_point or index.dtype in (torch.bool, torch.complex64):
            raise ConfigError(
                f"rows: expected a list of row numbers, found {index.dtype} of shape {tuple(index.shape)}"
            )
        index = index.long()
        if index.device.type == "cpu" and len(index):  # on an accelerator the check would wait for the device
            low, high = torch.aminmax(index)
            if low < 0 or high >= self.num_rows:
                bad = int(low) if low < 0 else int(high)
                raise ConfigError(f"{self.location}: row {bad} asked for, expected 0 to {self.num_rows - 1}")
        return index.to(self.device, non_blocking=True)

    def _table(self, view: int, topk: int) -> _Table | _MappedTable:
        with self._lock:
            key = (view, topk)
            if key not in self._tables:
                self._check_request(view, topk)
                in_turn = self._announced == view
                # A view that was announced while more wait replaces the one in use; else the last one may come back.
                self._keep_tables(0 if in_turn and self.num_views > RESIDENT_VIEWS else RESIDENT_VIEWS - 1)
                self._tables[key] = self._load(view, topk)
                self._reader.release()  # the tables are copies: keeping the columns would double the memory
                self._announced = None
            self._tables.move_to_end(key)
            return self._tables[key]

    def _keep_tables(self, count: int) -> None:
        while len(self._tables) > count:
            self._tables.popitem(last=False)

    def _check_request(self, view: int, topk: int) -> None:
        if not 0 <= view < self.num_views:
            raise ConfigError(f"{self.location}: view {view} asked for, expected 0 to {self.num_views - 1}")
        if topk < 1:
            raise ConfigError(f"topk: expected at least 1, found {topk}")
        if topk > self.topk:
            raise IncompatibleError(
                f"{self.location}: topk {topk} asked for, the store holds {self.topk} classes per row",
                hint=f"use --topk {self.topk} or less, or dump again with kdcache dump-teacher --topk {topk}",
            )

    def _load(self, view: int, topk: int) -> _Table | _MappedTable:
        digest = self.manifest.root_digest or self._reader.view_digest(view)
        store = (str(Path(self.location).resolve()), digest, str(self.device), view)
        table = _SHARED.get((*store, topk)) or _SHARED.get((*store, self.topk))
        if table is None:
            columns = self._reader.view(view)
            self._features.offer(columns)
            if isinstance(columns.topk_index, np.memmap):  # the reader found that the view does not fit in memory
                table = _MappedTable(
                    columns=columns, labels=self.labels, views=self.manifest.views, topk=topk, device=self.device
                )
            else:
                table = _resident(columns, self.labels, self.manifest.views, self.device)
        if isinstance(table, _MappedTable):
            table = replace(table, topk=topk)
        elif topk + 1 < table.classes.shape[1]:
            table = _narrowed(table, topk, self.num_classes)
        _SHARED[*store, topk] = table
        return table


def open_store(location: str | Path, *, device: torch.device | str = "cpu") -> TargetStore:
    """Open a sealed store for training; bytes are verified on first use and stay resident on `device`.

    Args:
        location: path or URL of the store.
        device: where targets are wanted, for example "cuda".

    Raises:
        NotFoundError: nothing there. UnfinishedStoreError: not sealed. CorruptStoreError: not a format-1 store.
    """
    return TargetStore(open_reader(location), device=device)


def _gathered(table: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if table is None else torch.index_select(table, 0, rows).long()


def _class_dtype(largest: int) -> type[np.integer]:
    """The smallest integer that holds a class and that torch can gather (its unsigned types above uint8 cannot)."""
    if largest < 2**8:
        return np.uint8
    if largest < 2**15:
        return np.int16
    return np.int32 if largest < 2**31 else np.int64


def _label_mix(
    columns: ViewColumns, labels: NDArray[np.int64], views: ViewSpec, rows: NDArray[np.int64] | slice
) -> LabelMix | None:
    """The second labels of some rows of a view, where the views mix two examples."""
    if columns.view_params is None or not mixes(views):
        return None
    log_prob = columns.optional.get("partner_label_log_prob")
    return stored_label_mix(views, columns.view_params[rows], labels, None if log_prob is None else log_prob[rows])


def _resident(columns: ViewColumns, labels: NDArray[np.int64], views: ViewSpec, device: torch.device) -> _Table:
    mix = _label_mix(columns, labels, views, slice(None))
    num_rows, topk = columns.topk_index.shape
    kind = _class_dtype(max(int(columns.topk_index.max(initial=0)), int(labels.max(initial=0))))
    classes = np.empty((num_rows, topk + 1), dtype=kind)
    classes[:, :topk] = columns.topk_index
    classes[:, topk] = labels
    log_probs = np.empty((num_rows, topk + 1), dtype=columns.topk_log_prob.dtype)
    log_probs[:, :topk] = columns.topk_log_prob
    log_probs[:, topk] = columns.label_log_prob
    sampled = {name: columns.optional[name] for name in SAMPLED if name in columns.optional}
    return _Table(
        classes=torch.from_numpy(classes).to(device),
        log_probs=torch.from_numpy(log_probs).to(device),
        tail=torch.from_numpy(columns.tail.copy()).to(device),
        view_params=columns.view_params,
        **{
            name: torch.from_numpy(values.astype(_class_dtype(int(values.max(initial=0))))).to(device)
            for name, values in sampled.items()
        },
        mix=None if mix is None else mix.each(lambda field: field.to(device)),
    )


def _narrowed(table: _Table, topk: int, num_classes: int) -> _Table:
    """The table for a smaller k, narrowed once here instead of in every step."""
    num_rows, tails, device = len(table.tail), [], table.tail.device
    for start in range(0, num_rows, NARROW_ROWS):
        rows = torch.arange(start, min(start + NARROW_ROWS, num_rows), device=device)
        tails.append(narrow(table.gather(rows, num_classes), topk).tail)
    columns = torch.tensor([*range(topk), table.classes.shape[1] - 1], device=device)
    return replace(
        table,
        classes=torch.index_select(table.classes, 1, columns),
        log_probs=torch.index_select(table.log_probs, 1, columns),
        tail=torch.cat(tails),
    )
