"""The work folder `.kdcache/` of a store that is being written: emptied and removed once the store is sealed."""

from __future__ import annotations

import shutil
from pathlib import Path

from kdcache.store.files import WORK_FOLDER, as_store_errors, sync_folder


def remove_work_folder(root: Path) -> None:
    """Remove the records and the lease file; nothing of a sealed store depends on them."""
    folder = root / WORK_FOLDER
    if not folder.is_dir() or folder.is_symlink():
        return
    with as_store_errors(folder):
        shutil.rmtree(folder)
        sync_folder(root)
