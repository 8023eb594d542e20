"""The recipe as a grid of cells: the teacher, its one dump, and students of every method and control."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.dump import DumpConfig, dump_teacher
from kdcache.parallel import Cell
from kdcache.teacher_training import TeacherConfig, train_teacher
from pipelines.earlier import made_at
from pipelines.spot_adaptive.half_size import write_half_size
from pipelines.spot_adaptive.sakd import BASELINES
from pipelines.spot_adaptive.training import StudentConfig, train_student

HERE = Path(__file__).parent
HALF_SIZE = "cifar100-half"
TEACHER, DUMP = "teacher", "dump"
SINGLE_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One scale of grid.toml, with the place of its data and results.

    Attributes:
        dataset: card name or path; data_root: where its files are, "" for the default place.
        folder: where teacher, store and students go.
        split: the rows that are dumped and students train on; rows: how many.
        tflops: what the machine does in 10^12 operations a second, for the estimate of costs.
        teacher, dump, student: settings of `TeacherConfig`, `DumpConfig` and `StudentConfig`.
        baselines: ce and kd; methods, controls, seeds: each with each.
        single: methods and controls for seed 0 alone, after all others; live: those that need --live-teacher.
    """

    dataset: str
    data_root: str
    folder: Path
    split: str
    rows: int
    tflops: float
    teacher: Mapping[str, Any]
    dump: Mapping[str, Any]
    student: Mapping[str, Any]
    baselines: tuple[str, ...]
    methods: tuple[str, ...]
    controls: tuple[str, ...]
    seeds: tuple[int, ...]
    single: Mapping[str, Any]
    live: Mapping[str, Any]

    def cells(self, *, live: bool) -> Iterator[Cell]:
        """Everything to do, the teacher first, seeds outermost.

        Args:
            live: also the students whose teacher runs in every step.
        """
        teacher = {
            "dataset": self.dataset,
            "data_root": self.data_root,
            "out": str(self.folder / "teacher"),
            **_with_paths(self.teacher),
        }
        yield Cell(name=TEACHER, run=run_teacher, arguments=teacher)
        dump = {
            "dataset": self.dataset,
            "data_root": self.data_root,
            "split": self.split,
            "teacher": self.teacher["model"],
            "weights": str(self._weights),
            "out": str(self.folder / "store.zarr"),
            **_with_paths(self.dump),
        }
        yield Cell(name=DUMP, run=run_dump, arguments=dump, needs=(TEACHER,))
        for name, student in self.students(live=live):
            yield Cell(name=name, run=run_student, arguments=dataclasses.asdict(student), needs=(DUMP,))

    def students(self, *, live: bool) -> Iterator[tuple[str, StudentConfig]]:
        """Every student with its name; see `cells`."""
        for seed in self.seeds:
            for method in self.baselines:
                yield self._student(method, "always", seed)
            for control in self.controls:
                for method in self.methods:
                    yield self._student(method, control, seed)
        for method in self.single["methods"] if self.seeds[0] == SINGLE_SEED else ():
            for control in self.single["controls"]:
                yield self._student(method, control, SINGLE_SEED)
        for seed in self.live["seeds"] if live else ():
            for method in self.live["methods"]:
                for control in self.live["controls"]:
                    yield self._student(method, control, seed, live_teacher=str(self._weights))

    def finished(self) -> dict[str, dict[str, Any]]:
        """What is finished, by name as in `cells`, live students too, none of other settings; runs nothing."""
        places = {TEACHER: self.folder / TEACHER / "result.json", DUMP: self.folder / "store.zarr.dump.json"}
        found = {name: json.loads(path.read_text()) for name, path in places.items() if path.is_file()}
        for name, student in self.students(live=True):
            path = Path(student.out) / "result.json"
            if path.is_file() and student.is_of(result := json.loads(path.read_text())):
                found[name] = result
        return found

    @property
    def _weights(self) -> Path:
        return self.folder / "teacher" / "last.safetensors"

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


def load_recipe(
    scale: str, *, data_root: Path | None, folder: Path, seeds: tuple[int, ...] = (), write_data: bool = True
) -> Recipe:
    """Read one scale of grid.toml; the data set of the cpu scale is written where it is missing.

    Args:
        scale: smoke, cpu or paper.
        data_root: where the data set (or the one it is made from) is.
        folder: where results go, one folder per scale below it.
        seeds: other seeds than the grid's, or in another order.
        write_data: False for a dry run.

    Raises:
        NotFoundError: the data set is not there.
    """
    table = tomllib.loads((HERE / "grid.toml").read_text())[scale]
    lists: dict[str, Any] = {name: tuple(table.pop(name)) for name in ("baselines", "methods", "controls", "seeds")}
    lists["seeds"] = seeds or lists["seeds"]
    root = str(data_root.resolve()) if data_root is not None else ""
    if table["dataset"] == HALF_SIZE and write_data:
        card, data = write_half_size(folder.resolve() / "data", data_root=data_root)
        table["dataset"], root = str(card), str(data)
    return Recipe(data_root=root, folder=folder.resolve() / scale, **lists, **table)


def run_teacher(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Train the teacher; `arguments` are those of `TeacherConfig`."""
    config = TeacherConfig(**_with_root(arguments), resume=True)
    trained = made_at(arguments["out"], lambda: train_teacher(config))
    names = ("accuracy", "nll", "seconds", "parameters", "model", "epochs")
    return {"weights": str(trained.weights), **{name: trained.figures[name] for name in names}}


def run_dump(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Dump the teacher once; `arguments` are those of `DumpConfig`. What it took is kept beside the store."""
    config = DumpConfig(**_with_root(arguments))
    dumped = made_at(config.out, lambda: dump_teacher(config))
    record = Path(f"{dumped.store}.dump.json")
    if not dumped.reused:
        figures = {"rows_written": dumped.rows_written, "seconds": dumped.seconds, "top1": dumped.quality["top1"]}
        alone = dumped.teacher_seconds or dumped.stages["forward"]
        record.write_text(json.dumps({**figures, "teacher_seconds": alone}))
    kept: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
    return {"store": dumped.store, "root_digest": dumped.root_digest, **kept}


def run_student(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Train one student; `arguments` are those of `StudentConfig`."""
    config = StudentConfig(**arguments)
    return made_at(config.out, lambda: train_student(config))


def _with_root(arguments: Mapping[str, Any]) -> dict[str, Any]:
    root = arguments["data_root"]
    return {**arguments, "data_root": Path(root) if root else None}


def _with_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose policy file is looked for beside the grid."""
    augment = str(settings.get("augment", ""))
    return {**settings, **({"augment": str(HERE / augment)} if augment.endswith(".toml") else {})}
