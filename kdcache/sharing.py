"""Sharing through a catalogue: put stores there, and ask it before a teacher is run.

`dump_for_team` is `dump_teacher` with a catalogue before and after it: a covering store is used whoever made it, two
people do not dump the same thing at once, and what is new is registered when it is sealed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from kdcache.dump import DumpConfig, DumpResult, dump_teacher
from kdcache.dump_plan import DumpPlan, plan_dump
from kdcache.errors import IncompatibleError, KdcacheError
from kdcache.progress import counted, note
from kdcache.specs import covers
from kdcache.store.catalog import STORES, Catalog, CatalogEntry, store_name
from kdcache.store.dump_claims import claim
from kdcache.store.location import Location
from kdcache.store.manifest_file import ROOT_FILE, read_manifest
from kdcache.store.names import readable_name
from kdcache.store.transfer import push_store


def add_store(catalog: Catalog, store: str | Path) -> CatalogEntry:
    """Register a sealed store, copied into the catalogue first unless it lies there.

    Raises:
        UnfinishedStoreError, CorruptStoreError: the store is not sound; nothing was registered.
        IncompatibleError: another store has its name there.
        ConfigError, RemoteError: the catalogue cannot be written.
    """
    catalog.location.require_writable()
    place = Location.at(store)
    manifest = read_manifest(place)
    name = _name_inside(catalog, place)
    if name is None:
        name = store_name(manifest)
        there = catalog.location.size(f"{name}/{ROOT_FILE}")
        if there is not None and read_manifest(catalog.location / name).root_digest != manifest.root_digest:
            name = name.removesuffix(".zarr") + f"-{manifest.root_digest[:8]}.zarr"
        push_store(str(store), str(catalog.location / name))
    size = sum(item.size for item in catalog.location.list(name))
    return catalog.register(manifest, name, size=size)


def dump_for_team(config: DumpConfig, catalog: Catalog, *, wait: bool = False) -> DumpResult:
    """Find the store that covers a request in a catalogue, or dump it and put it there.

    Args:
        config: the request; `out` "" puts the store into the catalogue at once, another place is copied there.
        catalog: what the team shares.
        wait: wait for someone who is dumping the same thing, instead of refusing.

    Raises:
        LockedError: someone else is dumping it and `wait` is not set.
        Everything `dump_teacher` raises.
    """
    plan = plan_dump(config)
    if plan.found is not None:
        result = dump_teacher(config)
        if not catalog.location.read_only and _covering(catalog, plan, config, tell=str) is None:
            _register(catalog, result.store)  # made before the team had a catalogue
        return result
    found = _covering(catalog, plan, config)
    if found is not None:
        return found
    catalog.location.require_writable()
    views = counted(config.views, "view")
    what = f"{plan.data.name} ({plan.data.split}) by {plan.teacher.spec.source}, {views}, top {plan.topk}"
    quietly = partial(_covering, catalog, plan, config, tell=str)  # asked every few seconds
    held = claim(catalog, plan.key, what=what, wait=wait, settled=lambda: quietly() is not None)
    found = _covering(catalog, plan, config)  # sealed by someone else between the first look and the claim
    if held is None:
        return found if found is not None else dump_for_team(config, catalog, wait=wait)
    with held:
        if found is not None:
            return found
        result = dump_teacher(replace(config, out=config.out or _place_for(catalog, plan, config)))
        _register(catalog, result.store)
    return result


def looked_up(catalog: Catalog, config: DumpConfig) -> tuple[DumpConfig, DumpResult | None]:
    """What `dump_for_team` would do, without dumping anything.

    Returns:
        The request with the place it would write, and the result of finding a covering store, None without one.
    """
    plan = plan_dump(config)
    return replace(config, out=config.out or _place_for(catalog, plan, config)), _covering(catalog, plan, config)


def _register(catalog: Catalog, store: str) -> None:
    entry = add_store(catalog, store)
    note(f"{catalog}: registered {entry.name} ({entry.store})")


def _covering(
    catalog: Catalog, plan: DumpPlan, config: DumpConfig, *, tell: Callable[[str], object] = note
) -> DumpResult | None:
    """The result of finding a covering store; its own manifest is asked, not the entry."""
    needed = (("sample_index",) if config.samples else ()) + config.feature_fields
    wanted = catalog.serving(
        plan.key, topk=plan.topk, num_views=config.views, fields=needed, precision=config.precision
    )
    for entry in wanted:
        place = catalog.place_of(entry)
        try:
            manifest = read_manifest(place)
        except KdcacheError as error:
            tell(f"{catalog}: entry {entry.name} is passed over: {error.message}")
            continue
        serves = covers(
            manifest,
            plan.key,
            topk=plan.topk,
            num_views=config.views,
            fields=needed,
            samples=config.samples,
            precision=config.precision,
        )
        if manifest.root_digest != entry.root_digest or not serves:
            tell(f"{catalog}: entry {entry.name} is passed over: the store at {place} is another one")
            continue
        tell(f"{catalog}: {entry.store} by {entry.by} already covers this request; no teacher was built")
        return DumpResult.of(str(place), manifest)
    return None


def _place_for(catalog: Catalog, plan: DumpPlan, config: DumpConfig) -> str:
    name = readable_name(
        plan.data,
        plan.teacher.spec,
        plan.key,
        topk=plan.topk,
        num_views=config.views,
        precision=config.precision,
        samples=config.samples,
        features=config.feature_fields,
    )
    return str(catalog.location / f"{STORES}/{name}")


def _name_inside(catalog: Catalog, place: Location) -> str | None:
    """`stores/NAME` when a store lies directly there, else None."""
    whole, prefix = _absolute(place), _absolute(catalog.location).rstrip("/") + "/"
    name = whole.removeprefix(prefix) if whole.startswith(prefix) else ""
    if name.startswith("stores/") and name.count("/") == 1:
        return name
    if name:
        raise IncompatibleError(
            f"{place}: lies in the catalogue, but not directly under {prefix}stores/",
            hint="move it there, or elsewhere",
        )
    return None


def _absolute(place: Location) -> str:
    return str(place.folder.resolve()) if place.folder is not None else place.url.rstrip("/")
