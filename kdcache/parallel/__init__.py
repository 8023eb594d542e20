"""Many workers: a grid of cells in order, in processes or on a Dask cluster; and the Dask team of a shared dump."""

from __future__ import annotations

from kdcache.parallel.cells import Cell, Failure, GridResult
from kdcache.parallel.grid import run_cells
from kdcache.parallel.recipe import run_recipe

__all__ = ["Cell", "Failure", "GridResult", "run_cells", "run_recipe"]
