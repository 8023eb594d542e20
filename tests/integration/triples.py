"""What a user of `DistillLoader` writes, run alone or under torchrun: keeps every triple with the row it belongs to.

Usage: triples.py FOLDER NAME ROWS BATCH EPOCHS WORKERS,WORKERS,...
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from torch import Tensor

import kdcache
from tests.small_store import small_source


class Plain(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """A data set of the user's own."""

    def __init__(self, rows: int) -> None:
        source = small_source(rows)
        self.images, self.marks = torch.from_numpy(source.examples).float() / 255, source.labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.marks[index])


def keep(folder: Path, name: str, rows: int, batch: int, epochs: int, workers: int) -> None:
    """FOLDER/NAME-RANK-WORKERS.npy: (N, columns) epoch, step, row, then input, label and targets."""
    store = kdcache.open_store(folder / "store.zarr")
    loader = kdcache.DistillLoader(Plain(rows), store, batch_size=batch, seed=5, workers=workers)
    kept = []
    for epoch in range(epochs):
        order = loader.rows(epoch)
        for step, (chosen, (inputs, labels, targets)) in enumerate(zip(order, loader, strict=True)):
            place = torch.tensor([[epoch, step, row] for row in chosen.tolist()])
            parts = [place, inputs.flatten(1), labels[:, None], targets.index, targets.log_prob, targets.tail]
            kept.append(torch.cat([part.double() for part in parts], dim=1))
    rank = os.environ.get("RANK", "0")
    np.save(folder / f"{name}-{rank}-{workers}.npy", torch.cat(kept).numpy())


def main() -> None:
    """Every number of workers in turn, in the process group of torchrun where there is one."""
    folder, name, rows, batch, epochs, workers = sys.argv[1:]
    shared = "RANK" in os.environ
    if shared:
        torch.distributed.init_process_group("gloo")
    for count in workers.split(","):
        keep(Path(folder), name, int(rows), int(batch), int(epochs), int(count))
    if shared:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
