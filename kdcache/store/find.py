"""Where stores are looked for when none is named, and which one covers a request.

The default folder is `kdcache-store/` under the working folder. Damaged or foreign entries in it are passed over here;
naming one explicitly is what reports what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcache.errors import IncompatibleError, KdcacheError, NotFoundError
from kdcache.specs import DatasetSpec, Precision, StoreManifest, TeacherSpec, covers
from kdcache.store.files import PARTIAL, WORK_FOLDER
from kdcache.store.location import Location
from kdcache.store.manifest_file import ROOT_FILE, read_manifest
from kdcache.store.names import readable_name
from kdcache.store.publish import published_at

DEFAULT_FOLDER = "kdcache-store"


@dataclass(frozen=True, kw_only=True)
class FoundStore:
    """A store's place and what it says about itself."""

    location: str
    manifest: StoreManifest


def default_store_path(
    dataset: DatasetSpec,
    teacher: TeacherSpec,
    *,
    topk: int,
    key: str,
    precision: str = "default",
    samples: int = 0,
    features: Sequence[str] = (),
) -> str:
    """`kdcache-store/DATA-SPLIT_TEACHER_topK_KEY.zarr`, a relative path that tells people what is inside."""
    name = readable_name(dataset, teacher, key, topk=topk, precision=precision, samples=samples, features=features)
    return str(Path(DEFAULT_FOLDER) / name)


def stores_under(folder: str | Path = DEFAULT_FOLDER) -> Iterator[FoundStore]:
    """Readable manifests of the stores directly under a folder, by name."""
    root = Path(folder)
    if not root.is_dir():
        return
    for path in sorted(root.iterdir()):
        if not (path / "zarr.json").is_file():
            continue
        try:
            yield FoundStore(location=str(path), manifest=read_manifest(path))
        except KdcacheError:
            continue


def covering_store(
    key: str,
    *,
    topk: int,
    num_views: int,
    out: str = "",
    samples: int = 0,
    fields: tuple[str, ...] = (),
    precision: Precision = "compact",
) -> FoundStore | None:
    """The sealed store that serves (key, topk, num_views): `out` if it does, else one of the default folder.

    Args:
        key: store key of the request.
        topk: classes needed per row.
        num_views: views needed.
        out: the place the user named; only this one is looked at when given.
        samples: classes drawn per row.
        fields: optional arrays that must be there, such as "features/penultimate".
        precision: numbers at least as fine.

    Raises:
        IncompatibleError: `out` holds something else.
    """

    def serves(manifest: StoreManifest) -> bool:
        return covers(
            manifest, key, topk=topk, num_views=num_views, samples=samples, fields=fields, precision=precision
        )

    if not out:
        return next((found for found in stores_under() if serves(found.manifest)), None)
    target = Location.at(out)
    if target.folder is None:
        there = published_at(target)
        return FoundStore(location=str(target), manifest=there) if there is not None and serves(there) else None
    out = str(target.folder)
    if not Path(out).exists():
        return None
    if is_beginning(Path(out)):
        return None
    if not (Path(out) / "zarr.json").is_file():
        raise IncompatibleError(
            f"{out}: exists and is not a kdcache store; expected a new path or a store",
            hint="choose another path with --out",
        )
    manifest = read_manifest(out)
    return FoundStore(location=out, manifest=manifest) if serves(manifest) else None


def is_beginning(folder: Path) -> bool:
    """Whether a folder holds only what a dump makes before its root file: what was killed that early continues."""
    return folder.is_dir() and all(
        path.name == WORK_FOLDER or (path.name.startswith(f"{ROOT_FILE}.") and path.name.endswith(PARTIAL))
        for path in folder.iterdir()
    )


def only_store(folder: str | Path = DEFAULT_FOLDER) -> FoundStore:
    """The one store of the default folder, for `distill` and `info` without a store named.

    Raises:
        NotFoundError: there is none.
        IncompatibleError: there are several, and choosing one silently could train on the wrong teacher.
    """
    found = list(stores_under(folder))
    if not found:
        raise NotFoundError(
            f"no store under {Path(folder)}/ in {Path.cwd()}; expected one made by dump-teacher",
            hint="kdcache dump-teacher",
        )
    if len(found) > 1:
        names = "\n    ".join(store.location for store in found)
        raise IncompatibleError(
            f"{len(found)} stores under {Path(folder)}/, expected one when --store is not given:\n    {names}",
            hint=f"kdcache distill --store {found[-1].location}",
        )
    return found[0]
