"""Model inputs by row number: gathered from memory where the data set is an array, else decoded by worker processes.

Workers ship uint8 pixels and row numbers only; normalisation runs per batch on the device, and soft targets never pass
through a worker (shipping them caps a loader at 0.2 M rows/s). Crop and flip of an array's rows run on the device too,
as one batch of uint8. No targets and no order here.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kdcache.datasets.identity import read_with_digests, row_digests
from kdcache.datasets.sequences import is_sequence
from kdcache.datasets.source import ArraySource, DataSource
from kdcache.devices import to_device
from kdcache.errors import ConfigError, IncompatibleError, KdcacheError
from kdcache.loader.mixing import read_mixed
from kdcache.models.preprocess import Preprocessing
from kdcache.views.mixing import Mix, check_partners, drawn_mixing, mixing_of
from kdcache.views.policy import ViewPolicy

LATEST_BATCHES = 16
RESIDENT_BYTES = 4 << 30  # arrays up to this size are kept on an accelerator; CIFAR is 0.15 GB


class InputReader:
    """Reads batches of model inputs.

    Args:
        source: the data set.
        preprocessing: what the model expects.
        policy: replayable random augmentation, or None for the plain example.
        workers: processes that decode examples; 0 decodes in this process. Arrays in memory need none.
        device: where the inputs come out.
        stored_params: (rows, view) -> (B, W) uint8, the outcomes a store recorded; they are replayed instead of drawn
            again.
        take_digests: digest the raw examples of view 0 where they are decoded, for `view_columns`: each is read once.

    A policy that mixes examples gives mixed inputs; the partner's label is in the store's targets (`SoftTargets.mix`).
    """

    def __init__(
        self,
        source: DataSource,
        preprocessing: Preprocessing,
        policy: ViewPolicy | None = None,
        *,
        workers: int = 0,
        device: torch.device | str = "cpu",
        stored_params: Callable[[NDArray[np.int64], int], NDArray[np.uint8]] | None = None,
        take_digests: bool = False,
    ) -> None:
        if is_sequence(source):
            raise ConfigError(
                f"{source.name!r} has token rows, which mean nothing one by one",
                hint="read them with kdcache.loader.tokens.TokenReader, or streams with segment_of (docs/tokens.md)",
            )
        self._stored_params = stored_params
        self._take_digests = take_digests
        self._source = source
        self._preprocessing = preprocessing
        self._policy = policy
        self._device = torch.device(device)
        self.views_on = views_device(source, preprocessing, policy, self._device)
        # Ops without a kernel for a batch run one by one: on the CPU, whose pixels the single-image path gives.
        place = torch.device("cpu") if policy is not None and self.views_on is None else self._device
        self._array = _resident_array(source, preprocessing, policy, place)
        self._decoder = None if self._array is not None else _Decoder(source, preprocessing, policy)
        self._requests = _Requests()
        self._loader = self._build_loader(workers)
        # of the latest batches: whoever reads ahead asks for their columns a few batches later
        self._latest: deque[tuple[NDArray[np.int64], int, _Columns]] = deque(maxlen=LATEST_BATCHES)

    @property
    def policy(self) -> ViewPolicy | None:
        """The views it shows; None for the plain examples."""
        return self._policy

    @property
    def in_memory(self) -> bool:
        """Whether batches are gathered from one array, without workers."""
        return self._array is not None

    def batches(
        self,
        batches: Iterable[NDArray[np.int64]],
        *,
        view: int | Sequence[int] = 0,
        digests: NDArray[np.uint16] | None = None,
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Inputs of batches of row numbers, in the order given.

        Args:
            batches: arrays of row numbers, (B,) int64 each.
            view: which view of the policy, one for all batches or one for each; without a policy every view is the
                plain example.
            digests: (N,) expected digests of the raw examples; each row is compared as it passes, partners too.

        Yields:
            (inputs, rows): inputs (B, ...) float32 (int64 for tokens) on the device, rows as given.

        Raises:
            IncompatibleError: a row is not the example the digests were taken from.
            ConfigError: examples of one batch have different sizes.
        """
        asked = zip(batches, itertools.repeat(view) if isinstance(view, int) else view, strict=False)
        if self._policy is None or self._policy.mix_op is None:
            yield from self._plain(asked, digests)
            return
        for inputs, batch in read_mixed(lambda needed: self._plain(needed, digests), asked, self._drawn_mix):
            if self._latest:  # of rows and partners
                kept = {name: values[batch.own] for name, values in self._latest[-1][2].items()}
                self._latest[-1] = (batch.rows, batch.view, kept)
            yield inputs, batch.rows

    def mixing(self, rows: NDArray[np.int64], view: int) -> Mix | None:
        """Who the partners of these rows are in a view, and their weights; None where the policy mixes nothing."""
        return None if self._policy is None or self._policy.mix_op is None else self._drawn_mix(rows, view)

    def _drawn_mix(self, rows: NDArray[np.int64], view: int) -> Mix:
        assert self._policy is not None
        if self._stored_params is not None:
            mix = mixing_of(self._policy, self._policy.unpack(self._stored_params(rows, view)))
        else:
            mix = drawn_mixing(self._policy, rows, view, num_rows=len(self._source))
        assert mix is not None
        check_partners(mix, len(self._source))
        return mix

    def _plain(
        self, asked: Iterable[tuple[NDArray[np.int64], int]], digests: NDArray[np.uint16] | None
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Each row in its own view, before any mixing."""
        return self._decoded(asked, digests) if self._array is None else self._gathered(self._array, asked, digests)

    def view_columns(self, rows: NDArray[np.int64], view: int) -> Mapping[str, NDArray[np.generic]]:
        """The store columns that are known of these rows: `view_params`, what made their view; `row_digest` of view 0.

        Without a policy, and without `take_digests`, they are left out.
        """
        for seen, its_view, columns in tuple(self._latest):
            if its_view == view and np.array_equal(seen, rows):
                return columns
        digests = {"row_digest": row_digests(self._source, rows)} if self._take_digests and view == 0 else {}
        if self._policy is None:
            return digests
        sizes = np.stack([_size(self._source.example(int(row)).shape) for row in rows])
        outcomes = self._policy.sample(rows, view, sizes=sizes, num_rows=len(self._source))
        return {**digests, "view_params": self._policy.pack(outcomes)}

    def _gathered(
        self,
        array: Tensor,
        asked: Iterable[tuple[NDArray[np.int64], int]],
        digests: NDArray[np.uint16] | None,
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        size = np.array(array.shape[-2:], dtype=np.int64)
        for rows, view in asked:
            columns: _Columns = {}
            if digests is not None or (self._take_digests and view == 0):
                columns["row_digest"] = found = row_digests(self._source, rows)
                if digests is not None:
                    _check_digests(self._source, rows, found, digests)
            inputs = torch.index_select(array, 0, torch.from_numpy(rows).to(array.device, non_blocking=True))
            if self._policy is not None:
                sizes = np.broadcast_to(size, (len(rows), 2))
                if self._stored_params is not None:
                    outcomes = self._policy.unpack(self._stored_params(rows, view))
                else:
                    outcomes = self._policy.sample(rows, view, sizes=sizes, num_rows=len(self._source))
                columns["view_params"] = self._policy.pack(outcomes)
                if self.views_on is not None:  # an array too large for the device: its uint8 rows go there first
                    inputs = to_device(inputs, self.views_on)
                inputs = self._policy.apply_batch(inputs, outcomes)
            self._latest.append((rows, view, columns))
            yield self._preprocessing.batch(to_device(inputs, self._device)), rows

    def _decoded(
        self, asked: Iterable[tuple[NDArray[np.int64], int]], digests: NDArray[np.uint16] | None
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        expected: deque[tuple[NDArray[np.int64], int]] = deque()
        self._requests.items = self._requests_for(asked, digests is not None, expected)
        for answer in self._loader:
            rows, view = expected.popleft()
            if isinstance(answer, KdcacheError):
                raise answer
            inputs, found, params = answer
            if digests is not None:
                _check_digests(self._source, rows, found.numpy(), digests)
            columns: _Columns = {} if params is None else {"view_params": params.numpy()}
            if self._take_digests and view == 0:
                columns["row_digest"] = found.numpy()
            self._latest.append((rows, view, columns))
            yield self._preprocessing.batch(to_device(inputs, self._device)), rows

    def _requests_for(
        self,
        asked: Iterable[tuple[NDArray[np.int64], int]],
        digests: bool,
        expected: deque[tuple[NDArray[np.int64], int]],
    ) -> Iterator[_Request]:
        """Requests as the loader asks for them, a few batches ahead; `expected` remembers whose answers will come."""
        stored = self._stored_params if self._policy is not None else None
        for rows, view in asked:
            expected.append((rows, view))
            wanted = digests or (self._take_digests and view == 0)
            yield _Request(rows=rows, view=view, digests=wanted, params=stored(rows, view) if stored else None)

    def _build_loader(self, workers: int) -> Iterable[_Answer]:
        if self._decoder is None:
            return ()
        return DataLoader(
            self._decoder,
            batch_size=None,  # a request is a whole batch already
            sampler=self._requests,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_as_it_is,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator().manual_seed(0),  # else every epoch would draw from the global generator
        )


def example_shape(source: DataSource) -> tuple[int, ...]:
    """Shape of one raw example as models see it: (C, H, W) for uint8 images, else the array's own."""
    return tuple(example_tensor(source, 0).shape)


def example_tensor(source: DataSource, row: int) -> Tensor:
    """One raw example: uint8 (C, H, W) for images, else the array's own dtype and shape; always a copy."""
    return _as_tensor(source.example(row))


@dataclass(frozen=True, kw_only=True)
class _Request:
    rows: NDArray[np.int64]
    view: int
    digests: bool
    params: NDArray[np.uint8] | None


_Columns = dict[str, NDArray[np.generic]]
_Answer = tuple[Tensor, Tensor, Tensor | None] | KdcacheError


class _Requests(Sampler[_Request]):
    """The batches of the current epoch; replaced between epochs so that workers stay alive."""

    def __init__(self) -> None:
        self.items: Iterable[_Request] = ()

    def __iter__(self) -> Iterator[_Request]:
        return iter(self.items)


class _Decoder(Dataset[_Answer]):
    """Runs in a worker: raw example -> view -> uint8 of the model's size, a whole batch at a time."""

    def __init__(self, source: DataSource, preprocessing: Preprocessing, policy: ViewPolicy | None) -> None:
        self._source = source
        self._preprocessing = preprocessing
        self._policy = policy

    def __getitem__(self, request: _Request) -> _Answer:
        try:
            return self._answer(request)
        except (
            KdcacheError
        ) as error:  # sent back as data: a worker's exception would lose its hint and gain a traceback
            return error

    def _answer(self, request: _Request) -> _Answer:
        rows = request.rows
        digests = np.zeros(0, dtype=np.uint16)
        if request.digests:
            decoded, digests = read_with_digests(self._source, rows)
        else:
            decoded = [self._source.example(int(row)) for row in rows]
        examples = [_as_tensor(example) for example in decoded]
        params = None
        shapes = [tuple(example.shape[-2:]) for example in examples]
        if self._policy is not None:
            sizes = np.array(shapes, dtype=np.int64)
            if request.params is not None:
                outcomes = self._policy.unpack(request.params)
            else:
                outcomes = self._policy.sample(rows, request.view, sizes=sizes, num_rows=len(self._source))
            examples = [self._policy.apply(example, outcomes[i]) for i, example in enumerate(examples)]
            params = torch.from_numpy(self._policy.pack(outcomes))
        sized = [self._to_model_size(example, size) for example, size in zip(examples, shapes, strict=True)]
        return self._stacked(sized, rows), torch.from_numpy(digests), params

    def _to_model_size(self, example: Tensor, size: tuple[int, ...]) -> Tensor:
        if self._policy is not None and self._policy.squashes:
            # A free box is the view: resizing its shorter side and cutting the centre would cut it a second time.
            return self._preprocessing.squash(example, (size[-2], size[-1]))
        return self._preprocessing.per_example(example)

    def _stacked(self, examples: list[Tensor], rows: NDArray[np.int64]) -> Tensor:
        for row, example in zip(rows, examples, strict=True):
            if example.shape != examples[0].shape:
                raise ConfigError(
                    f"{self._source.name!r}: row {row} has shape {tuple(example.shape)}, row {rows[0]} has "
                    f"{tuple(examples[0].shape)}; a batch needs one size",
                    hint="use a model or card whose preprocessing resizes and crops, or views whose crop has a size",
                )
        return torch.stack(examples)


def views_device(
    source: DataSource, preprocessing: Preprocessing, policy: ViewPolicy | None, device: torch.device
) -> torch.device | None:
    """Where a reader makes views: the device whose batched kernels make them, or None for image by image on the CPU.

    Batched: rows of an array in memory, and a policy of crop and flip alone. The pixels are the same either way.
    """
    batched = policy is not None and policy.is_batched and _is_gathered(source, preprocessing, policy)
    return device if batched else None


def _is_gathered(source: DataSource, preprocessing: Preprocessing, policy: ViewPolicy | None) -> bool:
    return (
        isinstance(source, ArraySource) and not preprocessing.spatial and not (policy is not None and policy.squashes)
    )


def _as_it_is(answer: Any) -> Any:
    return answer


def _as_tensor(example: NDArray[np.generic]) -> Tensor:
    """uint8 (H, W, C) becomes (C, H, W); everything else keeps its shape."""
    tensor = torch.tensor(example)  # a copy: decoded images are read-only, which torch would warn about
    return tensor.permute(2, 0, 1).contiguous() if tensor.dtype == torch.uint8 and tensor.ndim == 3 else tensor


def _size(shape: tuple[int, ...]) -> NDArray[np.int64]:
    return np.array(shape[:2], dtype=np.int64)


def _resident_array(
    source: DataSource, preprocessing: Preprocessing, policy: ViewPolicy | None, device: torch.device
) -> Tensor | None:
    """All examples as one tensor, images channels first, or None when they must be decoded or resized one by one."""
    if not (isinstance(source, ArraySource) and _is_gathered(source, preprocessing, policy)):
        return None
    array = torch.from_numpy(source.examples if source.examples.flags.writeable else source.examples.copy())
    if array.dtype == torch.uint8 and array.ndim == 4:
        array = array.permute(0, 3, 1, 2).contiguous()
    return array.to(device) if array.nbytes <= RESIDENT_BYTES else array


def _check_digests(
    source: DataSource, rows: NDArray[np.int64], found: NDArray[np.uint16], expected: NDArray[np.uint16]
) -> None:
    wrong = np.flatnonzero(found != expected[rows])
    if len(wrong):
        row = int(rows[wrong[0]])
        raise IncompatibleError(
            f"{source.name!r} ({source.split}): row {row} is not the store's example: digest "
            f"{int(found[wrong[0]]):04x}, the store has {int(expected[row]):04x} ({len(wrong)} rows of the batch)",
            hint="use the data set the store was made from, in its order, or give kdcache dump-teacher for this one",
        )
