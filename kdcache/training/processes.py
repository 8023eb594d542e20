"""Several training processes under torchrun: who am I, sums over all, one writer. A single process passes through.

`torchrun --nproc-per-node N -m kdcache distill ...` sets RANK, WORLD_SIZE and LOCAL_RANK; gloo serves CPUs, nccl GPUs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn

from kdcache.devices import choose_device
from kdcache.progress import is_quiet, set_quiet


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Which of all training processes this one is.

    Attributes:
        rank: 0 <= rank < world_size; rank 0 writes files and talks.
        world_size: number of processes.
        device: where this process computes.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Sum of a tensor over all processes, in place; the same in each."""
        if self.world_size > 1:
            torch.distributed.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether it is so in at least one process; told to all."""
        return bool(self.sum(torch.tensor([int(flag)], device=self.device)))

    def same(self, text: str) -> bool:
        """Whether all processes say the same; told to all."""
        if self.world_size == 1:
            return True
        digest = hashlib.sha256(text.encode()).digest()
        mine = torch.tensor(list(digest), dtype=torch.int64, device=self.device)
        first = mine.clone()
        torch.distributed.broadcast(first, 0)
        return not self.any(not torch.equal(mine, first))

    def wait(self) -> None:
        """Until every process is here."""
        if self.world_size > 1:
            torch.distributed.barrier()


@contextmanager
def joined_processes(device: str) -> Iterator[Processes]:
    """Join the processes torchrun started, or be the only one; leaves the group at the end.

    Processes other than the first are silent while inside.

    Raises:
        ConfigError: the device cannot be used.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device, local_rank=local_rank)
    if world_size == 1:
        yield Processes(device=chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    was_quiet, joined_before = is_quiet(), torch.distributed.is_initialized()
    if not joined_before:
        torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    rank = torch.distributed.get_rank()
    set_quiet(was_quiet or rank > 0)
    try:
        yield Processes(rank=rank, world_size=torch.distributed.get_world_size(), device=chosen)
    finally:
        set_quiet(was_quiet)
        if not joined_before:
            torch.distributed.destroy_process_group()


def average_buffers(model: nn.Module, processes: Processes) -> None:
    """Replace running statistics by their mean over processes: each saw its own share of the rows."""
    if processes.world_size == 1:
        return
    for buffer in model.buffers():
        if buffer.dtype.is_floating_point:
            processes.sum(buffer).div_(processes.world_size)
