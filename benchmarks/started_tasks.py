"""Tasks that do nothing, for what starting a worker costs (`benchmarks.workers`): workers import them by name."""

from __future__ import annotations

import importlib

from kdcache.workers.tasks import Order


def nothing(order: Order) -> bytes:
    """A task that does nothing."""
    return b""


def torch_threads(order: Order) -> bytes:
    """A task that needs torch."""
    return b"%d" % importlib.import_module("torch").get_num_threads()
