"""kdcache: run a distillation teacher once per team, keep its opinion in Zarr, train every student from it.

Public names are loaded on first use (PEP 562), so `import kdcache` and the command line stay free of torch, whose
import alone takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kdcache import errors
from kdcache.version import __version__

if TYPE_CHECKING:
    from kdcache.loader import AttachedDataset, DistillLoader, TargetStore, open_store
    from kdcache.parallel.store_arrays import to_dask
    from kdcache.targets.methods import methods
    from kdcache.targets.soft import SoftTargets

# Functions whose module has the same name (`kdcache.distill.distill`) are imported from their module.
_HOMES = {
    "AttachedDataset": "kdcache.loader",
    "DistillLoader": "kdcache.loader",
    "SoftTargets": "kdcache.targets.soft",
    "TargetStore": "kdcache.loader",
    "methods": "kdcache.targets.methods",
    "open_store": "kdcache.loader",
    "to_dask": "kdcache.parallel.store_arrays",
}

__all__ = [
    "AttachedDataset",
    "DistillLoader",
    "SoftTargets",
    "TargetStore",
    "__version__",
    "errors",
    "methods",
    "open_store",
    "to_dask",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'kdcache' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
