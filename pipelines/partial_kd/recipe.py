"""What DATA.toml asks for: teachers, one store of each, students, and the trials that choose every method's settings.

Read here and turned into the configs of `train_teacher`, `dump_teacher` and `distill`; nothing is run.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kdcache
from kdcache.errors import ConfigError

HERE = Path(__file__).parent
MAIN = "main"
Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How settings are chosen: every method gets the same number of trials, judged on rows that are not test rows.

    Attributes:
        eval_split: the validation rows.
        seed: of the trials.
        student: settings of the students of trials where they differ (fewer epochs).
        values: method -> setting -> values; the trials are their product. "options.NAME" is an option of the method.
    """

    eval_split: str
    seed: int
    student: Settings
    values: Mapping[str, Mapping[str, Sequence[Any]]]

    def trials(self, method: str) -> list[dict[str, Any]]:
        """The settings tried for a method, in a fixed order."""
        values = self.values[method]
        return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Students that differ in their seed only.

    Attributes:
        name: of the arm; method: of the method table.
        settings: of `DistillConfig`, beside the student's own and the tuned ones.
        teacher: whose store is read.
        tuned_as: the method whose tuned settings are used; None where nothing is tuned.
        seeds: one student each.
    """

    name: str
    method: str
    settings: Settings
    teacher: str
    tuned_as: str | None
    seeds: tuple[int, ...]

    @property
    def reads_teacher(self) -> bool:
        """Whether a live run of this method would ask the teacher in every step."""
        return bool(kdcache.methods[self.method].needs)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One data set at one scale.

    Attributes:
        name: of the TOML file; scale: of it.
        dataset: card name; data_root: where its files are.
        folder: where teachers, stores, students and the grid's cells go.
        teachers: name -> settings of `TeacherConfig`; "main" is the one of the comparison.
        weights: of the main teacher, where it shall not be trained.
        student: settings of `DistillConfig` that all students share.
        arms: in the order they are run.
        split: the rows students train on; topk: classes stored; dump: other settings of `DumpConfig`.
        tuning: None where nothing is tuned.
        rows: of the splits that do not say it themselves, tflops: what the machine really does; for the cost.
    """

    name: str
    scale: str
    dataset: str
    data_root: Path | None
    folder: Path
    teachers: Mapping[str, Settings]
    weights: Path | None
    student: Settings
    arms: tuple[Arm, ...]
    split: str
    topk: int | str
    dump: Settings = field(default_factory=dict)
    tuning: Tuning | None = None
    rows: int | None = None
    tflops: float = 0.025

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of all arms, each once."""
        return tuple(sorted({seed for arm in self.arms for seed in arm.seeds}))

    def teacher_settings(self, teacher: str) -> dict[str, Any]:
        """`TeacherConfig` of a teacher, as JSON."""
        return {
            "dataset": self.dataset,
            "data_root": _text(self.data_root),
            "out": str(self.folder / "teachers" / teacher),
            **self.teachers[teacher],
        }

    def dump_settings(self, teacher: str, weights: str) -> dict[str, Any]:
        """`DumpConfig` of the one dump of a teacher, as JSON."""
        return {
            "dataset": self.dataset,
            "data_root": _text(self.data_root),
            "teacher": self.teachers[teacher]["model"],
            "weights": weights,
            "split": self.split,
            "topk": self.topk,
            "out": str(self.store(teacher)),
            **self.dump,
        }

    def store(self, teacher: str) -> Path:
        """Where a teacher's store is."""
        return self.folder / "stores" / f"{teacher}.zarr"

    def student_settings(self, arm: Arm, seed: int, tuned: Settings, *, trial: int | None = None) -> dict[str, Any]:
        """`DistillConfig` of one student, as JSON; with `trial`, of the trial of that number."""
        settings: dict[str, Any] = {**self.student, **arm.settings}
        place = f"students/{arm.name}-seed{seed}"
        if trial is not None:
            assert self.tuning is not None
            settings |= {**self.tuning.student, "eval_split": self.tuning.eval_split}
            place = f"trials/{arm.name}-{trial}"
        options = dict(settings.pop("options", {}))
        for name, value in tuned.items():
            if name.startswith("options."):
                options[name.removeprefix("options.")] = value
            else:
                settings[name] = value
        return {
            "store": str(self.store(arm.teacher)),
            "data_root": _text(self.data_root),
            "student": settings.pop("model"),
            "method": arm.method,
            "seed": seed,
            "out": str(self.folder / place),
            "options": options,
            **settings,
        }


def load_recipe(data: str, scale: str, *, data_root: Path | None, folder: Path, weights: Path | None = None) -> Recipe:
    """Read one scale of DATA.toml.

    Raises:
        ConfigError: there is no such scale, or methods are tuned with different numbers of trials.
    """
    grid = tomllib.loads((HERE / f"{data}.toml").read_text())
    if not isinstance(grid.get(scale), Mapping):
        known = [name for name, value in grid.items() if isinstance(value, Mapping)]
        raise ConfigError(f"{data}.toml has no scale {scale!r}", hint=f"its scales are {', '.join(known)}")
    chosen = grid[scale]
    seeds, main = tuple(chosen["seeds"]), chosen["teacher"]
    tuning = _tuning(chosen["tuning"]) if "tuning" in chosen else None
    named = {method: {"method": method} for method in chosen["methods"]} | chosen.get("variants", {})
    return Recipe(
        name=data,
        scale=scale,
        dataset=chosen.get("dataset", grid["dataset"]),
        data_root=None if data_root is None else data_root.resolve(),
        folder=folder.resolve() / data / scale,
        teachers={MAIN: main, **{name: {**main, **other} for name, other in chosen.get("teachers", {}).items()}},
        weights=None if weights is None else weights.resolve(),
        student=chosen["student"],
        arms=tuple(_arm(name, settings, seeds, tuning) for name, settings in named.items()),
        split=chosen["split"],
        topk=chosen["topk"],
        dump=chosen.get("dump", {}),
        tuning=tuning,
        rows=chosen.get("rows"),
        tflops=chosen.get("tflops", 0.025),
    )


def _tuning(given: Settings) -> Tuning:
    student = {name: value for name, value in given.items() if name not in ("eval_split", "seed", "values")}
    tuning = Tuning(eval_split=given["eval_split"], seed=given["seed"], student=student, values=given["values"])
    counts = {method: len(tuning.trials(method)) for method in tuning.values}
    if len(set(counts.values())) > 1:
        raise ConfigError(
            f"tuning: expected the same number of trials for every method, found {counts}",
            hint="a method that may try more settings is not compared fairly",
        )
    return tuning


def _arm(name: str, given: Settings, seeds: tuple[int, ...], tuning: Tuning | None) -> Arm:
    settings = dict(given)
    method = settings.pop("method", name)
    tuned_as = settings.pop("tuned_as", method if tuning is not None and method in tuning.values else None)
    return Arm(
        name=name,
        method=method,
        teacher=settings.pop("teacher", MAIN),
        tuned_as=tuned_as,
        seeds=tuple(settings.pop("seeds", seeds)),
        settings=settings,
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
