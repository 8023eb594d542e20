"""Which store answers a request: at a named place, or among those of the default folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcache.specs import PRECISIONS, covers
from kdcache.store.find import covering_store, stores_under
from tests.store_cases import manifest_of, write_store


@pytest.mark.parametrize("kept", PRECISIONS)
@pytest.mark.parametrize("asked", PRECISIONS)
def test_a_store_answers_for_numbers_as_fine_as_its_own_and_for_coarser_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str, asked: str
) -> None:
    manifest = write_store(tmp_path / "kdcache-store" / "s.zarr", manifest_of(rows=300, precision=kept))
    serves = PRECISIONS.index(kept) <= PRECISIONS.index(asked)
    assert covers(manifest, manifest.store_key, topk=5, num_views=1, precision=asked) == serves
    monkeypatch.chdir(tmp_path)
    for out in ("", str(tmp_path / "kdcache-store" / "s.zarr")):
        found = covering_store(manifest.store_key, topk=5, num_views=1, out=out, precision=asked)
        assert (found is not None) == serves


def test_what_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    write_store(tmp_path / "good.zarr", manifest_of(rows=300))
    (tmp_path / "bad.zarr").mkdir()
    (tmp_path / "bad.zarr" / "zarr.json").write_text("{")
    (tmp_path / "folder").mkdir()
    assert [Path(found.location).name for found in stores_under(tmp_path)] == ["good.zarr"]
    assert list(stores_under(tmp_path / "nowhere")) == []
