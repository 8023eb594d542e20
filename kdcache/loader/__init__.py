"""Reading: what a training loop needs from a store and a data set, by row number."""

from __future__ import annotations

from kdcache.loader.attach import AttachedDataset, DistillLoader
from kdcache.loader.inputs import InputReader
from kdcache.loader.order import batch_bounds, epoch_batches, epoch_order
from kdcache.loader.target_store import TargetStore, open_store

__all__ = [
    "AttachedDataset",
    "DistillLoader",
    "InputReader",
    "TargetStore",
    "batch_bounds",
    "epoch_batches",
    "epoch_order",
    "open_store",
]
