from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "user-cache"
    monkeypatch.setenv("KDCACHE_CACHE_DIR", str(folder))
    monkeypatch.delenv("KDCACHE_DATA_ROOT", raising=False)
    return folder


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"real data is not at {SHARED}")
    return SHARED


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    """train/ with 3 classes of 2 images, one grey, one nested, one with transparency, and a file that is no image."""
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    for label, name in enumerate(("cat", "ant", "bee")):
        for number in range(2):
            folder = root / "train" / name / ("deep" if number else ".")
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (9 + label, 7, 3), dtype=np.uint8)
            Image.fromarray(pixels if number else pixels[..., 0]).save(folder / f"{9 - number}.png")
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    Image.fromarray(rng.integers(0, 256, (5, 5, 4), dtype=np.uint8)).save(root / "train" / "cat" / "alpha.png")
    return root
