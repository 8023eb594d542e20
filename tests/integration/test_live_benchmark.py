"""The live path that stores are compared with: the same student as from an exact store, but for float16's last bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.live import LiveTeacher, distill_live
from kdcache.distill import DistillConfig, distill
from kdcache.dump import DumpConfig, dump_teacher
from kdcache.teacher_training import TeacherConfig, train_teacher
from tests.integration.distill_setup import write_data


def test_a_live_teacher_and_its_store_train_the_same_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCACHE_DATA_ROOT", str(tmp_path))
    monkeypatch.setenv("KDCACHE_CACHE_DIR", str(tmp_path / "cache"))
    card = str(write_data(tmp_path))
    weights = train_teacher(TeacherConfig(dataset=card, model="mlp-64", epochs=8, out=str(tmp_path / "t"))).weights
    made = dump_teacher(
        DumpConfig(
            dataset=card,
            teacher="mlp-64",
            weights=str(weights),
            topk="all",
            precision="exact",
            augment="cifar",
            views=3,
            view_seed=5,
            allow_weak_teacher=True,
            out=str(tmp_path / "store.zarr"),
        )
    )
    config = DistillConfig(
        store=made.store,
        dataset=card,
        student="mlp-16",
        method="kd",
        temperature=4.0,
        alpha=0.9,
        eval_split="test",
        epochs=4,
        batch_size=32,
        lr=0.05,
        out=str(tmp_path / "stored"),
        device="cpu",
    )
    stored = distill(config).figures
    live = LiveTeacher(source="mlp-64", weights=weights, split="train", policy="cifar", view_seed=5, views=3)
    lived = distill_live(DistillConfig(**{**config.__dict__, "out": str(tmp_path / "lived")}), live)
    assert lived["teacher_seconds"] > 0
    assert lived["train_loss"] == pytest.approx(stored["train_loss"], rel=1e-3)
    assert lived["nll"] == pytest.approx(stored["nll"], rel=1e-3)
    other = LiveTeacher(source="mlp-64", weights=weights, split="train", policy="cifar", view_seed=6, views=3)
    elsewhere = distill_live(DistillConfig(**{**config.__dict__, "out": str(tmp_path / "other")}), other)
    assert elsewhere["train_loss"] != pytest.approx(stored["train_loss"], rel=1e-3)  # other pixels: the test can tell
