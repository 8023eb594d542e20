"""A store beside a data set in the user's own loop: `AttachedDataset` carries row numbers, `DistillLoader` the rest.

Targets are gathered in the training process by row number; workers never see them. Over a user's own, already
transformed data set only length and labels can be checked, and they are: at the start where the data set lists its
labels, and as rows pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kdcache.errors import ConfigError, IncompatibleError
from kdcache.loader.inputs import InputReader
from kdcache.loader.order import batch_bounds, epoch_batches
from kdcache.loader.target_store import Rows, TargetStore
from kdcache.seeding import torch_seed_for
from kdcache.targets.soft import SoftTargets
from kdcache.views.canary import check_policy
from kdcache.views.mixing import mixes
from kdcache.views.policy import ViewPolicy


@runtime_checkable
class MapDataset(Protocol):
    """Any map-style data set whose items are (input, label), for example torchvision's."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class AttachedDataset(Dataset[tuple[Any, int, int]]):
    """A map-style data set whose items also say which row they are, so that targets can be gathered by row.

    `DataLoader(AttachedDataset(data, store), ...)` yields (inputs, labels, rows); then `attached.targets(rows)`, in the
    training process, gives the soft targets. Worker processes get the data set without the store.

    Args:
        dataset: items (input, label); row i must be row i of the store.
        store: the opened store.

    Raises:
        IncompatibleError: another length, labels that are not the store's, or a store of mixed views: an item is one
            example.
    """

    def __init__(self, dataset: MapDataset, store: TargetStore) -> None:
        check_alignment(dataset, store)
        if mixes(store.manifest.views):
            raise IncompatibleError(
                f"{store.location} holds views that mix two examples ({store.manifest.views.policy!r}); the items of a "
                "data set are one example each, and the student must see the mixes the teacher saw",
                hint="give DistillLoader an InputReader over the store's data set: docs/views.md shows how",
            )
        self.dataset = dataset
        self._store: TargetStore | None = store

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int, int]:
        item = self.dataset[index]
        return item[0], int(item[1]), int(index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}  # a worker needs no targets; sending them would copy the store

    def targets(self, rows: Rows, view: int = 0, topk: int | None = None) -> SoftTargets:
        """Soft targets of some rows; see `TargetStore.targets`.

        Raises:
            ConfigError: called in a worker process.
        """
        if self._store is None:
            raise ConfigError(
                "targets were asked for in a worker process; expected the training process",
                hint="yield row numbers from the loader and call targets(rows) in the loop",
            )
        return self._store.targets(rows, view, topk)


class DistillLoader:
    """Iterates (inputs, labels, targets) over a data set and a store.

    Each `for` loop is one epoch, in an order that depends on (seed, epoch, number of processes) alone; the next loop is
    the next epoch. In a torch.distributed run every process gets its share, each row once.

    Args:
        dataset: a map-style data set of (input, label), or an `InputReader` over a kdcache data source.
        store: the opened store; targets and inputs come out on its device.
        batch_size: rows per step over all processes together.
        seed: decides the order.
        epoch: epoch to start with, for a resumed run.
        topk: classes per row; None takes all that are stored.
        workers: worker processes of a map-style data set.
        shuffle: False keeps row order.

    Raises:
        IncompatibleError: the data set is not the store's, or does not show the store's views.
        ConfigError: a batch size that does not divide among the processes.
    """

    def __init__(
        self,
        dataset: MapDataset | InputReader,
        store: TargetStore,
        *,
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        topk: int | None = None,
        workers: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.epoch = epoch
        self._store = store
        self._batch_size = batch_size
        self._seed = seed
        self._topk = topk
        self._shuffle = shuffle
        self._rank, self._world_size = _place_among_processes()
        self._steps = len(batch_bounds(store.num_rows, batch_size, world_size=self._world_size))
        if isinstance(dataset, InputReader):
            _check_reader(dataset, store)
        self._feed = dataset if isinstance(dataset, InputReader) else _MapFeed(dataset, store, workers=workers)

    def __len__(self) -> int:
        """Steps per epoch."""
        return self._steps

    def __iter__(self) -> Iterator[tuple[Any, Tensor, SoftTargets]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        view, next_view = (number % self._store.num_views for number in (epoch, epoch + 1))
        for inputs, rows in self._batches(epoch):
            targets = self._store.targets(rows, view, self._topk)
            self._store.prefetch(next_view)  # the first call counts, the others are free
            yield inputs, targets.label, targets

    def rows(self, epoch: int) -> list[NDArray[np.int64]]:
        """The row numbers this process visits in an epoch, batch by batch."""
        return epoch_batches(
            self._store.num_rows,
            self._batch_size,
            seed=self._seed,
            epoch=epoch,
            world_size=self._world_size,
            rank=self._rank,
            shuffle=self._shuffle,
        )

    def _batches(self, epoch: int) -> Iterator[tuple[Any, NDArray[np.int64]]]:
        batches = self.rows(epoch)
        if isinstance(self._feed, InputReader):
            return self._feed.batches(batches, view=epoch % self._store.num_views)
        return self._feed.batches(batches, seed=torch_seed_for("loader-workers", self._seed, epoch, self._rank))


class _MapFeed:
    """Batches of a user's data set through a DataLoader; labels are compared with the store's as they pass."""

    def __init__(self, dataset: MapDataset, store: TargetStore, *, workers: int) -> None:
        if store.manifest.views.ops:
            raise IncompatibleError(
                f"{store.location} holds {store.num_views} augmented views ({store.manifest.views.policy!r}); a data "
                "set with transforms of its own cannot show the student the same pixels",
                hint="give DistillLoader an InputReader over the store's data set; it replays the views",
            )
        self._store = store
        self._plan = _Plan()
        self._generator = torch.Generator()
        self._loader = DataLoader(
            AttachedDataset(dataset, store),
            batch_sampler=self._plan,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=store.device.type == "cuda",
            generator=self._generator,
        )

    def batches(self, batches: Sequence[NDArray[np.int64]], *, seed: int) -> Iterator[tuple[Any, NDArray[np.int64]]]:
        self._plan.batches = [rows.tolist() for rows in batches]
        self._generator.manual_seed(seed)
        for rows, (inputs, labels, _) in zip(batches, self._loader, strict=True):
            _check_labels(self._store, rows, labels.numpy())
            yield _to_device(inputs, self._store.device), rows


class _Plan(Sampler[list[int]]):
    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _check_reader(reader: InputReader, store: TargetStore) -> None:
    """A store of augmented or mixed views is read through a reader that replays them."""
    spec = store.manifest.views
    if not spec.ops:
        return
    try:
        check_policy(reader.policy or ViewPolicy(), spec)
    except IncompatibleError as error:
        raise IncompatibleError(
            error.message,
            hint="InputReader(source, preprocessing, ViewPolicy.from_spec(store.manifest.views), "
            "stored_params=store.view_params) replays the store's views",
        ) from error


def check_alignment(dataset: MapDataset, store: TargetStore) -> None:
    """Compare length and, where the data set lists them (`targets` or `labels`), all labels with the store's.

    Raises:
        IncompatibleError: they differ; the message names the first row.
    """
    if len(dataset) != store.num_rows:
        raise IncompatibleError(
            f"data set has {len(dataset)} rows, {store.location} was made from {store.num_rows}",
            hint="use the split the store was made from; kdcache info shows it",
        )
    listed = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if listed is None or callable(listed) or callable(getattr(dataset, "target_transform", None)):
        return  # a list from before a transform is not what the items say; those are compared as they pass
    labels = np.asarray(listed)
    if labels.shape == (store.num_rows,) and np.issubdtype(labels.dtype, np.integer):
        _check_labels(store, np.arange(store.num_rows), labels)


def _check_labels(store: TargetStore, rows: NDArray[np.int64], found: NDArray[np.integer]) -> None:
    wrong = np.flatnonzero(found != store.labels_at(rows))
    if len(wrong):
        row = int(rows[wrong[0]])
        raise IncompatibleError(
            f"row {row}: the data set says label {int(found[wrong[0]])}, {store.location} says "
            f"{int(store.labels[row])} ({len(wrong)} of {len(rows)} rows compared differ)",
            hint="give the data set in the order and with the labels the store was made from",
        )


def _to_device(inputs: Any, device: torch.device) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.to(device, non_blocking=True)
    if isinstance(inputs, dict):
        return {name: _to_device(value, device) for name, value in inputs.items()}
    if isinstance(inputs, tuple) and hasattr(inputs, "_fields"):  # a namedtuple, as torch's collate gives one back
        return type(inputs)(*(_to_device(value, device) for value in inputs))
    if isinstance(inputs, list | tuple):
        return type(inputs)(_to_device(value, device) for value in inputs)
    return inputs


def _place_among_processes() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
