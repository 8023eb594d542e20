"""Random edits of metadata and chunk bytes, checksums made right again: a named error, or the original values."""

from __future__ import annotations

import copy
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from kdcache.errors import CorruptStoreError, IncompatibleError
from kdcache.store.chunks import decode_chunk
from kdcache.store.layout import ArrayLayout, layout_of
from kdcache.store.ledger import root_digest
from kdcache.store.manifest_file import check_metadata, parse_root
from kdcache.store.reader import open_reader
from tests.store_cases import manifest_of, write_store

FIELDS = ("class_weight", "view_params")
MANIFEST = manifest_of(rows=300, fields=FIELDS, shapes={"class_weight": [300, 4], "view_params": [6]})
ODD = [None, True, -1, 0, 1, 2**31, 2**63, 2**100, 1e308, "", "x", "../..", [], {}, [0], [[]], {"a": 1}, "NaN", "|O"]
LONGEST = 5.0  # seconds a single case may take


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sealed") / "store"
    write_store(place, MANIFEST)
    return place


def mutate_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """One to four edits: a flipped bit, a byte, an integer of a header, a cut, a repeat or an insertion."""
    body = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(min(len(body), 40) if rng.random() < 0.5 else len(body))) if body else 0
        kind = int(rng.integers(6))
        if kind == 0 and body:
            body[at] ^= 1 << int(rng.integers(8))
        elif kind == 1 and body:
            body[at] = int(rng.choice([0, 1, 127, 128, 254, 255]))
        elif kind == 2:
            body[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 4, 2**16, 2**31 - 1, 2**31, 2**32 - 1])))
        elif kind == 3:
            del body[at:]
        elif kind == 4:
            body[at:at] = body[at : at + int(rng.integers(64))]
        else:
            body[at:at] = rng.bytes(int(rng.integers(1, 16)))
    return bytes(body)


def mutate_json(rng: np.random.Generator, value: Any) -> Any:
    """A copy with one node replaced, removed, renamed or added."""
    whole = copy.deepcopy(value)
    places = list(_nodes(whole))
    parent, key = places[int(rng.integers(len(places)))]
    odd = copy.deepcopy(ODD[int(rng.integers(len(ODD)))])
    kind = int(rng.integers(4))
    if kind == 0 and isinstance(parent, dict):
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[f"{key}_"] = odd
    elif kind == 2 and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        parent[key] = int(rng.choice([-1, 0, 1, 2, 255, 256, 65_535, 65_536, 2**31, 2**53]))
    else:
        parent[key] = odd
    return whole


def _nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _nodes(value[key])


def fuzz_chunks(store: Path, cases: int, *, seed: int) -> int:
    """Mutate chunk files with a right crc32c; returns how many were refused."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    layout = layout_of(open_reader(store).manifest)
    files: list[tuple[ArrayLayout, bytes, bytes]] = []
    for array in layout.values():
        data = next(path for path in (store / array.name / "c").rglob("*") if path.is_file()).read_bytes()
        if array.kind != "static":
            files.append((array, data[:-4], decode_chunk(data, array, where="here").tobytes()))
    refused = 0
    for case in range(cases):
        array, body, values = files[case % len(files)]
        edited = mutate_bytes(rng, body)
        sealed = edited + struct.pack("<I", google_crc32c.value(edited))
        started = time.monotonic()
        try:
            found = decode_chunk(sealed, array, where="here").tobytes()
            assert len(found) == len(values)  # other values of the right size are the ledger's to refuse
        except CorruptStoreError:
            refused += 1
        assert time.monotonic() - started < LONGEST
    return refused


def fuzz_metadata(store: Path, folder: Path, cases: int, *, seed: int) -> int:
    """Mutate the root file and array metadata; returns how many were refused."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    reader = open_reader(store)
    commit = np.frombuffer((store / "commit/c/0/0").read_bytes()[:-4], dtype=np.uint8).reshape(-1, 32)
    root = json.loads((store / "zarr.json").read_text())
    array = layout_of(reader.manifest)["tail"]
    tail = json.loads((store / "tail" / "zarr.json").read_text())
    (folder / "tail").mkdir(exist_ok=True)
    refused = 0
    for case in range(cases):
        started = time.monotonic()
        try:
            if case % 4:
                edited = mutate_json(rng, root)
                manifest = parse_root(edited, where="here")
                if root_digest(manifest, commit) != manifest.root_digest:
                    raise CorruptStoreError("root digest")
                same = {**manifest.to_json(), "creator": 0} == {**reader.manifest.to_json(), "creator": 0}
                assert same or _equal_once_read(manifest.to_json(), reader.manifest.to_json()), edited
            else:
                edited = mutate_json(rng, tail)
                (folder / "tail" / "zarr.json").write_text(json.dumps(edited))
                check_metadata(folder, array)
                assert {**edited, "attributes": {}} == tail
        except (CorruptStoreError, IncompatibleError):
            refused += 1
        assert time.monotonic() - started < LONGEST
    return refused


def _equal_once_read(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Whether two manifests differ in nothing but `complete`, which the digest takes as true, and notes."""
    outside = ("creator", "complete")
    return {key: one[key] for key in one if key not in outside} == {key: two[key] for key in two if key not in outside}


def test_a_thousand_cases(store: Path, tmp_path: Path) -> None:
    assert fuzz_chunks(store, 700, seed=1) > 400
    assert fuzz_metadata(store, tmp_path, 300, seed=2) > 200


@pytest.mark.slow
def test_a_hundred_thousand_cases(store: Path, tmp_path: Path) -> None:
    assert fuzz_chunks(store, 70_000, seed=3) > 40_000
    assert fuzz_metadata(store, tmp_path, 30_000, seed=4) > 20_000
