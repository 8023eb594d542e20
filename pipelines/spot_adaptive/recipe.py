"""The recipe's parts as functions of plain settings, JSON in and JSON out: teacher, dump, one student; their grid."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.dump import DumpConfig, dump_teacher
from kdcache.teacher_training import TeacherConfig, train_teacher
from pipelines.spot_adaptive.half_size import write_half_size
from pipelines.spot_adaptive.sakd import BASELINES
from pipelines.spot_adaptive.training import StudentConfig, train_student

HERE = Path(__file__).parent
HALF_SIZE = "cifar100-half"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One scale of grid.toml, with the place of its data and results.

    Attributes:
        dataset: card name or path; data_root: where its files are, "" for the default place.
        folder: where teacher, store and students go.
        split: the rows that are dumped and students train on.
        teacher, dump, student: settings of `TeacherConfig`, `DumpConfig` and `StudentConfig`.
        baselines: ce and kd; methods, controls, seeds: each with each.
        single: methods and controls for the first seed alone; live: those that need --live-teacher.
    """

    dataset: str
    data_root: str
    folder: Path
    split: str
    teacher: Mapping[str, Any]
    dump: Mapping[str, Any]
    student: Mapping[str, Any]
    baselines: tuple[str, ...]
    methods: tuple[str, ...]
    controls: tuple[str, ...]
    seeds: tuple[int, ...]
    single: Mapping[str, Any]
    live: Mapping[str, Any]

    @property
    def weights(self) -> Path:
        """The trained teacher."""
        return self.folder / "teacher" / "last.safetensors"

    def teacher_config(self) -> TeacherConfig:
        """The teacher's training."""
        return TeacherConfig(
            dataset=self.dataset,
            data_root=Path(self.data_root) if self.data_root else None,
            out=str(self.folder / "teacher"),
            resume=True,
            **_with_paths(self.teacher),
        )

    def dump_config(self) -> DumpConfig:
        """The one dump."""
        return DumpConfig(
            dataset=self.dataset,
            data_root=Path(self.data_root) if self.data_root else None,
            split=self.split,
            teacher=self.teacher["model"],
            weights=str(self.weights),
            out=str(self.folder / "store.zarr"),
            **_with_paths(self.dump),
        )

    def students(self, *, live: bool) -> Iterator[tuple[str, StudentConfig]]:
        """Every student with its name, seeds outermost.

        Args:
            live: also those whose teacher runs in every step.
        """
        for seed in self.seeds:
            for method in self.baselines:
                yield self._student(method, "always", seed)
            for method in self.methods:
                for control in self.controls:
                    yield self._student(method, control, seed)
        for method in self.single["methods"]:
            for control in self.single["controls"]:
                yield self._student(method, control, self.seeds[0])
        for seed in self.live["seeds"] if live else ():
            for method in self.live["methods"]:
                for control in self.live["controls"]:
                    yield self._student(method, control, seed, live_teacher=str(self.weights))

    def _student(self, method: str, control: str, seed: int, *, live_teacher: str = "") -> tuple[str, StudentConfig]:
        settings = dict(self.student)
        what = method if method in BASELINES else f"{method}-{control}" + ("-live" if live_teacher else "")
        name = f"{what}-seed{seed}"
        return name, StudentConfig(
            store=str(self.folder / "store.zarr"),
            data_root=self.data_root,
            student=settings.pop("model"),
            method=method,
            control=control,
            live_teacher=live_teacher,
            seed=seed,
            out=str(self.folder / "students" / name),
            **settings,
        )


def load_recipe(scale: str, *, data_root: Path | None, folder: Path, write_data: bool = True) -> Recipe:
    """Read one scale of grid.toml; the data set of the cpu scale is written where it is missing.

    Args:
        scale: smoke, cpu or paper.
        data_root: where the data set (or the one it is made from) is.
        folder: where results go, one folder per scale below it.
        write_data: False for a dry run.

    Raises:
        NotFoundError: the data set is not there.
    """
    table = tomllib.loads((HERE / "grid.toml").read_text())[scale]
    lists: dict[str, Any] = {name: tuple(table.pop(name)) for name in ("baselines", "methods", "controls", "seeds")}
    root = str(data_root) if data_root is not None else ""
    if table["dataset"] == HALF_SIZE:
        card, data = folder / "data" / "card.toml", folder / "data" / "data.npz"
        if write_data:
            card, data = write_half_size(folder / "data", data_root=data_root)
        table["dataset"], root = str(card), str(data)
    return Recipe(data_root=root, folder=folder / scale, **lists, **table)


def run_teacher(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Train the teacher, or read how it was trained. `arguments`: scale, folder, data_root."""
    trained = train_teacher(_recipe(arguments).teacher_config())
    names = ("accuracy", "nll", "seconds", "parameters")
    return {"weights": str(trained.weights), **{name: trained.figures[name] for name in names}}


def run_dump(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Dump the teacher once; a later call reads what the first one measured. `arguments`: scale, folder, data_root."""
    recipe = _recipe(arguments)
    record = recipe.folder / "dump.json"
    dumped = dump_teacher(recipe.dump_config())
    if not dumped.reused or not record.is_file():
        figures = {
            "store": dumped.store,
            "rows_written": dumped.rows_written,
            "seconds": dumped.seconds,
            "top1": dumped.quality.get("top1"),
        }
        record.write_text(json.dumps(figures, indent=1))
    figures = json.loads(record.read_text())
    return dict(figures)


def run_student(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Train one student, or read its result. `arguments`: those of `StudentConfig`."""
    return train_student(StudentConfig(**arguments))


def _recipe(arguments: Mapping[str, Any]) -> Recipe:
    root = arguments["data_root"]
    return load_recipe(arguments["scale"], data_root=Path(root) if root else None, folder=Path(arguments["folder"]))


def _with_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose policy file is looked for beside the grid."""
    augment = str(settings.get("augment", ""))
    return {**settings, **({"augment": str(HERE / augment)} if augment.endswith(".toml") else {})}
