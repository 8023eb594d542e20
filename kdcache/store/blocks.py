"""Blocks: the rows of one view that are written, committed, verified and repaired together. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kdcache.errors import ConfigError
from kdcache.specs import StoreManifest

MIN_BLOCK_ROWS = 256  # below this the per-chunk cost (about 0.1 ms and one fsync) outweighs the rows saved by a resume
MAX_BLOCK_ROWS = 65_536
BLOCKS_WANTED = 16  # a kill costs at most one block: 1/16 of a view


@dataclass(frozen=True, order=True)
class BlockId:
    """Rows [start, stop) of one view; `block` counts from 0 within the view."""

    view: int
    block: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    def __str__(self) -> str:
        return f"view {self.view} block {self.block} (rows {self.start}..{self.stop - 1})"


def block_rows_for(num_rows: int) -> int:
    """Rows per block, from N alone: the largest power of two up to 65,536 that still gives 16 blocks, at least 256.

    Raises:
        ConfigError: there are no rows.
    """
    if num_rows < 1:
        raise ConfigError(f"rows: expected at least 1, found {num_rows}")
    rows = MAX_BLOCK_ROWS
    while rows > MIN_BLOCK_ROWS and -(-num_rows // rows) < BLOCKS_WANTED:
        rows //= 2
    return rows


def block_at(manifest: StoreManifest, view: int, block: int) -> BlockId:
    """The block's identity with its row range."""
    start = block * manifest.block_rows
    return BlockId(view, block, start, min(start + manifest.block_rows, manifest.dataset.num_rows))


def blocks_of_view(manifest: StoreManifest, view: int) -> Iterator[BlockId]:
    """The blocks of one view in row order."""
    return (block_at(manifest, view, block) for block in range(manifest.blocks_per_view))


def all_blocks(manifest: StoreManifest) -> Iterator[BlockId]:
    """Every block of a store, view-major: the order of writing and of the rows of `commit`."""
    for view in range(manifest.num_views):
        yield from blocks_of_view(manifest, view)
