"""A folder as objects: what the shared contract of places does not ask (tests/contract/test_locations.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcache.store import folder_objects
from kdcache.store.folder_objects import FolderObjects


def test_a_folder_removed_by_a_delete_between_its_making_and_the_write_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two people of a team: one gives the last claim back, which removes its folder, while the other writes there."""
    objects = FolderObjects(tmp_path)
    objects.put("claims/first.json", b"1")
    make_folder, calls = folder_objects.make_folder, []

    def make_and_lose_it_once(path: Path) -> None:
        make_folder(path)
        calls.append(path)
        if len(calls) in (1, 3):
            objects.delete(["claims/first.json", "claims/second.json"])

    monkeypatch.setattr(folder_objects, "make_folder", make_and_lose_it_once)
    assert objects.put_new("claims/second.json", b"2")
    objects.put("claims/third.json", b"3")
    assert [found.name for found in objects.list("claims")] == ["claims/third.json"]
    assert len(calls) == 4
