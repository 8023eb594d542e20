"""The next batches while the present one is in use: an iterator that runs in a thread, a few items ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor

Inputs = TypeVar("Inputs")
Item = TypeVar("Item")
_END = object()


def read_ahead(
    items: Iterator[tuple[Inputs, Item]], device: torch.device, *, depth: int = 2
) -> Iterator[tuple[Inputs, Item]]:
    """The same items in the same order, made in a second thread at most `depth` ahead.

    On a GPU they are made on a stream of their own, so that copies and normalisation run beside the model. What the
    iterator raises is raised here, after the items before it. Leaving early ends the thread.

    Args:
        items: yields (a tensor on `device` or an object with tensors as attributes, anything).
        device: where the tensors are.
        depth: items that may wait; memory is bounded by `depth` + 2 items.
    """
    ready: queue.Queue[object] = queue.Queue(maxsize=depth)
    stopped = threading.Event()
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        last: object = _END
        try:
            with torch.cuda.stream(stream) if stream is not None else nullcontext():
                for inputs, rest in items:
                    made = stream.record_event() if stream is not None else None
                    if not put((inputs, rest, made)):
                        return
        except BaseException as error:  # noqa: BLE001 - raised in the thread that asks
            last = error
        put(last)

    thread = threading.Thread(target=run, name="kdcache-read-ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            assert isinstance(item, tuple)
            inputs, rest, made = item
            if made is not None:
                now = torch.cuda.current_stream(device)
                now.wait_event(made)
                for tensor in _tensors(inputs):
                    tensor.record_stream(now)  # its memory is not used again before the model is done with it
            yield inputs, rest
    finally:
        stopped.set()
        thread.join()


def _tensors(inputs: object) -> list[Tensor]:
    parts = [inputs] if isinstance(inputs, Tensor) else list(vars(inputs).values())
    return [part for part in parts if isinstance(part, Tensor)]
