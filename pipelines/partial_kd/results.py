"""Tables and plots of a recipe's finished cells, and the teacher time its stores saved. Nothing is run here.

The figure is top-1 in percent or, of token rows, perplexity; gains are over `ce` with the same seed, and a positive
gain is better in both. Intervals are 95 % t-intervals of the mean paired difference.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.canonical import to_json
from kdcache.datasets.cards import load_card
from kdcache.html.axes import Axis, colour_of
from kdcache.html.bars import Interval, interval_chart
from kdcache.html.charts import Series, line_chart
from kdcache.html.standalone import Panel, svg_file
from kdcache.parallel import GridResult
from kdcache.progress import duration
from kdcache.report import t_interval
from pipelines.partial_kd.cells import chosen_settings
from pipelines.partial_kd.recipe import MAIN, Arm, Recipe

BASELINE = "ce"
Figures = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """The finished students of an arm.

    Attributes:
        arm: what they are; tuned: the settings that won the trials.
        figures: of every finished student, by seed.
        gains: over ce with the same seed, in points; of perplexity, by how much it is lower.
    """

    arm: Arm
    tuned: Mapping[str, Any]
    figures: Mapping[int, Figures]
    gains: Mapping[int, float]

    def mean(self, name: str) -> float:
        """Mean of a figure over seeds; NaN where no student has it."""
        known = [float(one[name]) for one in self.figures.values() if one.get(name) is not None]
        return statistics.fmean(known) if known else math.nan


@dataclass(frozen=True, kw_only=True)
class TeacherTime:
    """What a store saved.

    Attributes:
        teacher: whose store; dump: seconds the one dump took; bytes: of the store.
        live: seconds the finished students and trials would have asked it, at the pace of its passes in the dump.
        bound: the dump was made before these were timed; `live` counts its start-up and writing too.
        readers: how many students and trials that was.
    """

    teacher: str
    dump: float
    bytes: int
    live: float
    readers: int
    bound: bool

    def __str__(self) -> str:
        most = "at most " if self.bound else ""
        return (
            f"teacher {self.teacher}: asked once, {duration(self.dump)} and {self.bytes / 1e6:.1f} MB; the "
            f"{self.readers} students and trials that read it would have asked it for {most}{duration(self.live)}"
        )


def rows_of(recipe: Recipe, found: GridResult) -> list[Row]:
    """Every arm with a finished student, in the recipe's order."""
    chosen, values = chosen_settings(recipe, found.results), {}
    for arm in recipe.arms:
        names = {seed: f"{arm.name}-seed{seed}" for seed in arm.seeds}
        values[arm.name] = {seed: found.results[name] for seed, name in names.items() if name in found.results}
    base = values.get(BASELINE, {})
    rows = []
    for arm in recipe.arms:
        figures = values[arm.name]
        pairs = {seed: (_figure(one), _figure(base[seed])) for seed, one in figures.items() if seed in base}
        words = any("perplexity" in one for one in figures.values())
        gains = {} if arm.name == BASELINE else {s: (b - a if words else a - b) for s, (a, b) in pairs.items()}
        if figures:
            tuned = chosen.get(arm.tuned_as or "", {})
            rows.append(Row(arm=arm, tuned=tuned, figures=figures, gains=gains))
    return rows


def teacher_times(recipe: Recipe, found: GridResult) -> list[TeacherTime]:
    """For every store that was made: its cost against that of asking the teacher in every step."""
    students = [(arm, found.results.get(f"{arm.name}-seed{seed}")) for arm in recipe.arms for seed in arm.seeds]
    if recipe.tuning is not None:
        tuned = [arm for arm in recipe.arms if arm.tuned_as == arm.method == arm.name]
        numbers = range(max((len(recipe.tuning.trials(arm.method)) for arm in tuned), default=0))
        students += [(arm, found.results.get(f"trial-{arm.method}-{number}")) for arm in tuned for number in numbers]
    times = []
    for teacher in recipe.teachers:
        store = found.results.get(f"store-{teacher}")
        if store is None or not store["rows_and_views"]:  # found ready: what it once cost is not known here
            continue
        read = [one for arm, one in students if one and arm.teacher == teacher and arm.reads_teacher]
        asked = sum(one["rows"] * one["epochs"] for one in read if "rows" in one)
        alone = store.get("teacher_seconds")
        times.append(
            TeacherTime(
                teacher=teacher,
                dump=store["seconds"],
                bytes=store["bytes"],
                live=(alone or store["seconds"]) / store["rows_and_views"] * asked,
                readers=len(read),
                bound=alone is None,
            )
        )
    return times


def markdown(recipe: Recipe, found: GridResult) -> str:
    """The tables: teachers, methods, and the teacher time saved."""
    rows = rows_of(recipe, found)
    words = any("perplexity" in one for row in rows for one in row.figures.values())
    lines = [f"### {recipe.name}, scale {recipe.scale}, commit {_commit()}", ""]
    for teacher in recipe.teachers:
        trained, store = found.results.get(f"teacher-{teacher}"), found.results.get(f"store-{teacher}")
        if trained is not None:
            measured = f"{_figure(trained):.2f} {'perplexity' if words else '% top-1'} on its evaluation rows"
            lines.append(f"- Teacher {teacher}: {measured}, trained in {duration(trained['seconds'])}.")
        if store is not None:
            quality = store["quality"]
            lines.append(f"  On the students' rows: top-1 {quality['top1']:.1%}, NLL {quality['nll']:.3f} nats.")
    name = "perplexity" if words else "top-1, %"
    lines += [
        "",
        f"On `{recipe.student.get('eval_split', 'test')}`:",
        "",
        f"| method | settings | seeds | {name} | gain over ce [95 %] | NLL | ECE | agreement | median omega |",
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        values = [_figure(one) for one in row.figures.values()]
        agreement = row.mean("train_agreement")
        omega = [one["rescaling"]["omega_p50"] for one in row.figures.values() if one.get("rescaling")]
        lines.append(
            f"| {row.arm.name} | {_settings(row)} | {len(values)} | {_spread(values)} | {_gain(row)} "
            f"| {row.mean('nll'):.3f} | {row.mean('ece'):.3f} "
            f"| {'-' if math.isnan(agreement) else f'{100 * agreement:.1f}'} "
            f"| {f'{statistics.fmean(omega):.2f}' if omega else '-'} |"
        )
    lines += ["", *(f"- {time}." for time in teacher_times(recipe, found))]
    return "\n".join(lines) + "\n"


def write_results(recipe: Recipe, found: GridResult, folder: Path) -> None:
    """Tables (.table.md), every finished cell's figures (.json) and plots (.svg) as partial_kd-DATA.* in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"partial_kd-{recipe.name}"
    (folder / f"{name}.table.md").write_text(markdown(recipe, found))
    cells = {
        cell: {**_brief(result), "cell_seconds": found.seconds.get(cell)} for cell, result in found.results.items()
    }
    document = {"scale": recipe.scale, "commit": _commit(), "cells": to_json(cells)}
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    panels = plots(recipe, rows_of(recipe, found))
    if panels:
        (folder / f"{name}.svg").write_text(svg_file(panels, columns=2))


def plots(recipe: Recipe, rows: Sequence[Row]) -> list[Panel]:
    """Gains of every arm over ce, and the figure against k where several were tried."""
    panels, compared = [], [row for row in rows if row.gains]
    words = any("perplexity" in one for row in rows for one in row.figures.values())
    title = f"gain over ce [{'perplexity' if words else 'points'}]"
    if compared:
        intervals = [_interval(row) for row in compared]
        ends = [end for one in intervals for end in (*one.values, *(one.outer or ()), 0.0)]
        margin = max(0.05 * (max(ends) - min(ends)), 0.1)
        axis = Axis(title=title, low=min(ends) - margin, high=max(ends) + margin)
        chart = interval_chart("gain over ce by method", axis, intervals, guide=0.0)
        panels.append(Panel(title="Gain over ce by seed, mean and 95 % interval", chart=chart))
    classes = load_card(recipe.dataset).num_classes
    known = {_k(row, classes): row for row in rows if row.arm.teacher == MAIN and _in_sweep(row, classes)}
    sweep = sorted(known.items())
    if len(sweep) > 2:
        series = _sweep_series([(k, row.gains) for k, row in sweep if row.gains])
        values = [value for _, row in sweep for value in row.gains.values()]
        ticks = [k for k, _ in sweep]
        x = Axis(title="classes kept (k)", low=ticks[0], high=ticks[-1], log=True, ticks=ticks)
        room = 0.05 * (max(*values, 0) - min(*values, 0))
        y = Axis(title=title, low=min(*values, 0) - room, high=max(values) + room)
        chart = line_chart("gain by k", x, y, [series])
        whole = "; all classes: kd" if ticks[-1] == classes else ""
        panels.append(Panel(title=f"kd-topk by k, mean and range of seeds{whole}", chart=chart))
    return panels


def _sweep_series(points: Sequence[tuple[int, Mapping[int, float]]]) -> Series:
    means = [(float(k), statistics.fmean(gains.values())) for k, gains in points]
    band = [(float(k), min(gains.values()), max(gains.values())) for k, gains in points]
    return Series(name="kd-topk", points=means, colour=colour_of(0), dots=True, band=band)


def _in_sweep(row: Row, classes: int) -> bool:
    """kd-topk, and kd where it reads all classes: of fewer its tail is another one."""
    return row.arm.method == "kd-topk" or (row.arm.name == "kd" and _k(row, classes) == classes)


def _k(row: Row, classes: int) -> int:
    return int(next(iter(row.figures.values())).get("topk") or classes)


def _interval(row: Row) -> Interval:
    values = list(row.gains.values())
    mean, outer = statistics.fmean(values), t_interval(values)
    return Interval(
        name=row.arm.name, colour=colour_of(0), values=values, mean=mean, inner=None, outer=outer, tip=row.arm.name
    )


def _figure(figures: Figures) -> float:
    """Perplexity of token rows, else top-1 in percent."""
    perplexity = figures.get("perplexity")
    return float(perplexity) if perplexity is not None else 100 * float(figures["accuracy"])


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def _gain(row: Row) -> str:
    values = list(row.gains.values())
    if not values:
        return "-"
    interval = t_interval(values)
    return f"{statistics.fmean(values):+.2f}" + (f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "")


def _settings(row: Row) -> str:
    """What the arm's students share and other arms may not."""
    shown = {name: value for name, value in {**row.tuned, **row.arm.settings}.items() if name != "method"}
    short = {"temperature": "T", "weight_decay": "wd", "topk": "k"}
    words = []
    for name, value in shown.items():
        plain = name.removeprefix("options.")
        words += (
            [f"{key} {item}" for key, item in value.items()]
            if isinstance(value, Mapping)
            else [f"{short.get(plain, plain)} {value}"]
        )
    return ", ".join(words) or "-"


def _brief(result: Figures) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in ("weights", "store", "method_facts")}


def _commit() -> str:
    """The commit of the code, "+" where the tree was changed."""
    asked = ["git", "describe", "--always", "--dirty=+"]
    here = Path(__file__).parent
    return subprocess.run(asked, cwd=here, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
