"""What teachers.toml asks for: teachers that differ in one thing, parts of their rows, students and trials.

Read here and turned into the settings of cells; nothing is run.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.errors import ConfigError
from pipelines.partial_kd.recipe import HERE
from pipelines.partial_kd.results import BASELINE

PLAIN = "plain"
Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Students of one teacher, part and method; they differ in their seed and their teacher's.

    Attributes:
        part: of the rows; teacher: "" for methods that have none; method: of the method table.
        settings: those that are tried; one of them is chosen on validation rows.
        sweep: whether all of them are read on the test rows too.
    """

    part: str
    teacher: str
    method: str
    settings: tuple[Settings, ...]
    sweep: bool

    @property
    def name(self) -> str:
        """PART-TEACHER-METHOD, or PART-METHOD."""
        return "-".join(word for word in (self.part, self.teacher, self.method) if word)


@dataclass(frozen=True, kw_only=True)
class Study:
    """One scale of teachers.toml.

    Attributes:
        scale: its name.
        dataset: card name; data_root: where its files are; folder: where everything goes.
        groups: classes that are alike, of which no model is told; none where nothing is known.
        level: mean p_y at which relations are compared beside T = 1.
        seeds: of a teacher and of its students, together.
        rows: asked of every teacher, once; parts: name -> [start, stop) of them.
        common: settings of `TeacherConfig`; trained: teacher -> what differs.
        early: {teacher, of, as}: a kept epoch of `of` with the validation accuracy of `as`.
        scaled: {teacher, of, by}: `of` with its logits times `by`.
        ask: part -> teachers whose students train on it.
        student: settings of `DistillConfig`; its evaluation rows are the test rows.
        trial_seeds: of trials, the n-th with the teachers of the n-th seed; trial_split: validation rows.
        methods, own: method -> setting -> values; `own` have no teacher.
        only: method -> PART-TEACHER that it is run for, where it is not all of `ask`.
        sweep: methods whose every setting is read on the test rows.
        contrasts: (teacher, other) whose students are compared.
    """

    scale: str
    dataset: str
    data_root: Path | None
    folder: Path
    groups: tuple[tuple[int, ...], ...]
    level: float
    seeds: tuple[int, ...]
    rows: str
    parts: Mapping[str, Sequence[int]]
    common: Settings
    trained: Mapping[str, Settings]
    early: Settings
    scaled: Settings
    ask: Mapping[str, Sequence[str]]
    student: Settings
    trial_seeds: tuple[int, ...]
    trial_split: str
    methods: Mapping[str, Mapping[str, Sequence[Any]]]
    own: Mapping[str, Mapping[str, Sequence[Any]]]
    only: Mapping[str, Sequence[str]]
    sweep: tuple[str, ...]
    contrasts: tuple[tuple[str, str], ...]

    @property
    def teachers(self) -> tuple[str, ...]:
        """Every teacher: the trained, the early one, the scaled one."""
        return (*self.trained, self.early["teacher"], self.scaled["teacher"])

    @property
    def order(self) -> tuple[str, ...]:
        """Methods in the order they are run: `ce`, those with a teacher, others without."""
        return tuple(dict.fromkeys((BASELINE, *self.methods, *self.own)))

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All arms, those without a teacher first in every part."""
        found = []
        for part, teachers in self.ask.items():
            for teacher, grids in (("", self.own), *((teacher, self.methods) for teacher in teachers)):
                for method, values in grids.items():
                    if f"{part}-{teacher}" not in self.only.get(method, (f"{part}-{teacher}",)):
                        continue
                    ((setting, tried),) = values.items()
                    settings = tuple({setting: value} for value in tried)
                    sweep = bool(teacher) and method in self.sweep
                    found.append(Arm(part=part, teacher=teacher, method=method, settings=settings, sweep=sweep))
        return tuple(found)

    def run_folder(self, teacher: str, seed: int) -> Path:
        """Where a teacher's weights are, as last.safetensors."""
        return self.folder / "teachers" / f"{teacher}-seed{seed}"

    def store(self, teacher: str, seed: int, part: str = "") -> Path:
        """The store of a teacher, or of a part of its rows."""
        return self.folder / "stores" / f"{teacher}-seed{seed}{part and '-' + part}.zarr"

    def teacher_settings(self, teacher: str, seed: int) -> dict[str, Any]:
        """`TeacherConfig` of a trained teacher, as JSON."""
        place = {"out": str(self.run_folder(teacher, seed)), "seed": seed}
        return {**self._data, **self.common, **self.trained[teacher], **place}

    def dump_settings(self, teacher: str, seed: int) -> dict[str, Any]:
        """`DumpConfig` of the one dump of a teacher, as JSON."""
        return {
            **self._data,
            "teacher": self.common["model"],
            "weights": str(self.run_folder(teacher, seed) / "last.safetensors"),
            "split": self.rows,
            "topk": "all",
            "precision": "exact",
            "allow_weak_teacher": True,  # part of the question
            "device": self.common["device"],
            "out": str(self.store(teacher, seed)),
        }

    def student_settings(self, arm: Arm, number: int, seed: int, *, trial: bool) -> dict[str, Any]:
        """`DistillConfig` of one student with the `number`-th settings of its arm, as JSON.

        A student without a teacher reads rows and labels of the plain teacher's store, and nothing else of it.
        """
        teacher_seed = self.seeds[self.trial_seeds.index(seed)] if trial else seed
        settings: dict[str, Any] = dict(self.student)
        options = {}
        for name, value in arm.settings[number].items():
            if name.startswith("options."):
                options[name.removeprefix("options.")] = value
            else:
                settings[name] = value
        if trial:
            settings["eval_split"] = self.trial_split
        return {
            "store": str(self.store(arm.teacher or PLAIN, teacher_seed, arm.part)),
            "data_root": self._data["data_root"],
            "student": settings.pop("model"),
            "method": arm.method,
            "options": options,
            "seed": seed,
            "out": str(self.folder / ("trials" if trial else "students") / f"{arm.name}-{number}-seed{seed}"),
            **settings,
        }

    @property
    def _data(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "data_root": None if self.data_root is None else str(self.data_root)}


def load_study(scale: str, *, data_root: Path | None, folder: Path) -> Study:
    """Read one scale of teachers.toml.

    Raises:
        ConfigError: methods are tuned with different numbers of trials, or a name stands for no teacher.
    """
    grid = tomllib.loads((HERE / "teachers.toml").read_text())
    whole = {name: value for name, value in grid.items() if name not in ("smoke", "cpu")} | grid[scale]
    listed: dict[str, Any] = {name: tuple(whole.pop(name)) for name in ("seeds", "trial_seeds", "sweep")}
    listed |= {name: tuple(tuple(one) for one in whole.pop(name)) for name in ("groups", "contrasts")}
    study = Study(
        scale=scale,
        data_root=data_root,
        folder=folder / "teachers" / scale,
        **listed,
        **whole,
    )
    counts = {arm.name: len(arm.settings) for arm in study.arms}
    if len(set(counts.values())) > 1:
        raise ConfigError(
            f"teachers.toml: expected as many trials for every method, found {counts}",
            hint="a method that may try more settings is not compared fairly",
        )
    named = {teacher for teachers in study.ask.values() for teacher in teachers}
    unknown = sorted((named | {name for pair in study.contrasts for name in pair} | {PLAIN}) - set(study.teachers))
    if unknown:
        raise ConfigError(f"teachers.toml: {', '.join(unknown)} is no teacher of {', '.join(study.teachers)}")
    return study
