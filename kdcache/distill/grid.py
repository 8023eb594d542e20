"""Several methods and seeds from one store in one process: the same request, one run each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from kdcache.distill.config import DistillConfig, RunResult
from kdcache.distill.follow import open_sealed
from kdcache.distill.plan import check_request
from kdcache.distill.run import distill
from kdcache.errors import ConfigError
from kdcache.nearest import did_you_mean
from kdcache.progress import note
from kdcache.store.find import only_store
from kdcache.targets.method import Method
from kdcache.targets.methods import find_method
from kdcache.training.runs import RunFolder


def distill_grid(config: DistillConfig, *, methods: Sequence[str], seeds: Sequence[int]) -> list[RunResult]:
    """Train one student per method and seed, seeds outermost, so that an early stop leaves whole comparisons.

    Args:
        config: what all runs share. With several runs `out` is the folder of their folders (METHOD-seedN). Temperature,
            alpha and options go to those methods that have them.
        methods: names; all are checked before the first step of the first.
        seeds: one run each.

    Raises:
        ConfigError: an unknown method, or a setting that none of the methods has.
        Everything `distill` raises.
    """
    chosen = [find_method(name) for name in methods]
    if len(chosen) > 1:
        _check_used(config, chosen)
    requests = [
        _request(config, method, seed, alone=len(chosen) == 1, several=len(chosen) * len(seeds) > 1)
        for seed in seeds
        for method in chosen
    ]
    if len(requests) > 1 and not config.follow:
        _check_all(requests)
    results = []
    for number, request in enumerate(requests, 1):
        if len(requests) > 1 and _is_first():
            note(f"run {number} of {len(requests)}: {request.method}, seed {request.seed}")
        results.append(distill(request))
    return results


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started


def _request(config: DistillConfig, method: Method, seed: int, *, alone: bool, several: bool) -> DistillConfig:
    out = str(Path(config.out) / f"{method.name}-seed{seed}") if config.out and several else config.out
    if alone:  # what was asked for stands, so that a setting the method does not have is an error
        return replace(config, method=method.name, seed=seed, out=out)
    known = {option.name for option in method.options}
    options = method.checked_options({name: value for name, value in config.options.items() if name in known})
    return replace(
        config,
        method=method.name,
        seed=seed,
        out=out,
        temperature=None if method.default_temperature is None else config.temperature,
        alpha=None if method.default_alpha is None else config.alpha,
        options={name: value for name, value in options.items() if name in config.options},
    )


def _check_all(requests: Sequence[DistillConfig]) -> None:
    """Refuse the last run before the first is trained; data and models are looked at by each run."""
    store = open_sealed(requests[0].store or only_store().location, torch.device("cpu"))
    for request in requests:
        check_request(request, store)
        if request.out and not request.resume and _is_first():  # others may look when the first run has its folder
            RunFolder(Path(request.out)).require_new()


def _check_used(config: DistillConfig, methods: Sequence[Method]) -> None:
    names = ", ".join(method.name for method in methods)
    if config.temperature is not None and all(method.default_temperature is None for method in methods):
        raise ConfigError(f"none of the methods {names} has a temperature, found {config.temperature}")
    if config.alpha is not None and all(method.default_alpha is None for method in methods):
        raise ConfigError(f"none of the methods {names} has an alpha, found {config.alpha}")
    known = {option.name for method in methods for option in method.options}
    for name in config.options:
        if name not in known:
            raise ConfigError(f"none of the methods {names} has an option {name!r}", hint=did_you_mean(name, known))
