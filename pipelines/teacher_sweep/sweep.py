"""A sweep: one table of grid.toml, and the settings of every teacher, store and student in it. Runs nothing."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kdcache

HERE = Path(__file__).parent
ROLES = ("selected", "most-accurate", "longest")
Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """One teacher: a kept epoch of the run of one batch size."""

    batch_size: int
    epochs: int

    @property
    def name(self) -> str:
        """`bBATCH-eEPOCHS`."""
        return f"b{self.batch_size}-e{self.epochs}"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One data set at one scale.

    Attributes:
        name: of the table; scale: it stands under.
        dataset: card name; data_root: where its files are; folder: where everything of this sweep goes.
        rows: what teachers and students train on; val: chooses settings and teachers; test: read by students, last.
        teacher: settings of `TeacherConfig`; its `lr` is that of batches of `lr_batch` rows.
        batch_sizes, epochs: the two axes.
        student: settings of `DistillConfig`; student_lr: rates tried on the validation rows (one: nothing is tried).
        temperature: of the students, and of the metrics beside T = 1.
        seeds: students of every teacher.
        tested: teachers put to the distillation hypothesis by role, or ("all",); tested_seeds: of their students.
        small: where the data is made smaller first, its side in pixels and rows per class that become `val`.
        num_rows: of `rows` where the text does not say it; tflops: what the machine really does; both for the cost.
    """

    name: str
    scale: str
    dataset: str
    data_root: Path | None
    folder: Path
    rows: str
    val: str
    test: str
    teacher: Settings
    batch_sizes: tuple[int, ...]
    epochs: tuple[int, ...]
    student: Settings
    student_lr: tuple[float, ...]
    temperature: float
    seeds: tuple[int, ...]
    tested: tuple[str, ...] = ROLES
    tested_seeds: tuple[int, ...] = ()
    small: Settings = field(default_factory=dict)
    num_rows: int | None = None
    tflops: float = 0.02

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """Every teacher, runs of small batches first."""
        return tuple(Teacher(batch_size=size, epochs=epochs) for size in self.batch_sizes for epochs in self.epochs)

    @property
    def data(self) -> dict[str, Any]:
        """Data set and root, as `TeacherConfig`, `DumpConfig` and `DistillConfig` take them."""
        if self.small:
            return {"dataset": "npz", "data_root": str(self._small_file)}
        return {"dataset": self.dataset, "data_root": None if self.data_root is None else str(self.data_root)}

    def small_settings(self) -> dict[str, Any]:
        """Of `shrink.write_small`."""
        root = None if self.data_root is None else str(self.data_root)
        return {"dataset": self.dataset, "data_root": root, "out": str(self._small_file), **self.small}

    @property
    def _small_file(self) -> Path:
        """The smaller data set; of other settings another file."""
        return self.folder / f"data-{self.small['side']}-{self.small['val_per_class']}.npz"

    def teacher_settings(self, batch_size: int) -> dict[str, Any]:
        """`TeacherConfig` of one run. The rate grows with the root of the batch; by default it is constant over the
        run, so that an early epoch is a teacher and not half a schedule.
        """
        given = dict(self.teacher)
        rate, reference = float(given.pop("lr")), int(given.pop("lr_batch", batch_size))
        step = math.gcd(*self.epochs)
        return {
            **self.data,
            "split": self.rows,
            "eval_split": self.val,
            "epochs": max(self.epochs),
            "batch_size": batch_size,
            "lr": rate * math.sqrt(batch_size / reference),
            "keep_every": step,
            "eval_every": step,
            "schedule": given.pop("schedule", "constant"),
            "out": str(self.folder / f"teacher-b{batch_size}"),
            **given,
        }

    def store(self, teacher: Teacher) -> Path:
        """Where a teacher's opinion is kept."""
        return self.folder / "stores" / f"{teacher.name}.zarr"

    def permuted(self, teacher: Teacher) -> Path:
        """Where its permuted control is kept."""
        return self.folder / "stores" / f"{teacher.name}-permuted.zarr"

    def dump_settings(self, teacher: Teacher) -> dict[str, Any]:
        """`DumpConfig` of one teacher: all classes, and weak ones too, which are part of the question."""
        run = self.folder / f"teacher-b{teacher.batch_size}"
        return {
            **self.data,
            "split": self.rows,
            "teacher": self.teacher["model"],
            "weights": str(run / "epochs" / f"epoch-{teacher.epochs:05d}.safetensors"),
            "topk": "all",
            "out": str(self.store(teacher)),
            "allow_weak_teacher": True,
        }

    def student_settings(
        self,
        store: Path,
        name: str,
        *,
        lr: float,
        seed: int,
        method: str = "kd",
        options: Mapping[str, object] | None = None,
        eval_split: str = "",
    ) -> dict[str, Any]:
        """`DistillConfig` of one student, which is evaluated once, after its last epoch."""
        given = dict(self.student)
        return {
            "store": str(store),
            "data_root": self.data["data_root"],
            "student": given.pop("model"),
            "method": method,
            "temperature": None if kdcache.methods[method].default_temperature is None else self.temperature,
            "options": dict(options or {}),
            "lr": lr,
            "seed": seed,
            "eval_split": eval_split or self.test,
            "eval_every": given["epochs"],
            "out": str(self.folder / "students" / f"{name}-seed{seed}"),
            **given,
        }


def load_sweeps(scale: str, only: str, *, data_root: Path | None, folder: Path) -> list[Sweep]:
    """The tables of one scale of grid.toml, or one of them.

    Raises:
        ConfigError: the scale has no table of that name.
    """
    tables = tomllib.loads((HERE / "grid.toml").read_text())[scale]
    if only not in ("", *tables):
        raise kdcache.errors.ConfigError(
            f"grid.toml, {scale}: no data set {only!r}; expected one of {', '.join(tables)}",
            hint=f"--data {next(iter(tables))}",
        )
    return [_sweep(name, scale, table, data_root, folder) for name, table in tables.items() if only in ("", name)]


def _sweep(name: str, scale: str, table: Mapping[str, Any], data_root: Path | None, folder: Path) -> Sweep:
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    student = dict(given.pop("student"))
    rates = student.pop("lr")
    return Sweep(
        name=name,
        scale=scale,
        dataset=given.pop("dataset", name),
        data_root=None if data_root is None else data_root.resolve(),
        folder=folder.resolve() / scale / name,
        student=student,
        student_lr=tuple(rates) if isinstance(rates, list) else (rates,),
        tested_seeds=given.pop("tested_seeds", given["seeds"]),
        **given,
    )
