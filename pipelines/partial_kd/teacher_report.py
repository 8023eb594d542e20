"""Tables and plots of the study of teachers, from its finished cells. Nothing is run here.

Differences are paired by seed, brackets are 95 % t-intervals of the mean difference. A seed is a teacher's and its
students': the chance of training the teacher is in every interval.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcache.canonical import to_json
from kdcache.html.axes import Axis, colour_of
from kdcache.html.bars import Interval, interval_chart
from kdcache.html.charts import Series, line_chart
from kdcache.html.standalone import Panel, svg_file
from kdcache.parallel import GridResult
from kdcache.progress import duration
from kdcache.report import t_interval
from pipelines.partial_kd.teacher_cells import chosen_settings, student_name
from pipelines.partial_kd.teacher_study import PLAIN, Arm, Study

Figures = Mapping[str, Any]
CONFIDENCE: Mapping[str, Callable[[Figures], float | None]] = {
    "top-1, %": lambda one: 100 * one["top1"],
    "NLL": lambda one: one["nll"],
    "ECE": lambda one: one["ece"],
    "mean p_y": lambda one: one["p_y"],
    "rows over 0.9, %": lambda one: 100 * one["sure"],
    "sd of omega, T = 1": lambda one: one["omega_sd"]["1"],
    "T of the level": lambda one: one["level_temperature"],
    "sd of p_y there": lambda one: _at(one, "level", "p_y_sd"),
    "rank of p_y, T = 1": lambda one: _at(one, "1", "rank"),
    "rank, level": lambda one: _at(one, "level", "rank"),
}
STRUCTURE: Mapping[str, Callable[[Figures], float | None]] = {
    "entropy of the others, T = 1": lambda one: _at(one, "1", "entropy"),
    "relations, nats, T = 1": lambda one: _at(one, "1", "relations"),
    "of the example, T = 1": lambda one: _at(one, "1", "example"),
    "group share, %, T = 1": lambda one: _percent(_at(one, "1", "group_share")),
    "relations, level": lambda one: _at(one, "level", "relations"),
    "of the example, level": lambda one: _at(one, "level", "example"),
    "group share, %, level": lambda one: _percent(_at(one, "level", "group_share")),
    "nearest of the group, %, level": lambda one: _percent(_at(one, "level", "neighbours")),
    "with the reference, level": lambda one: _at(one, "level", "reference"),
    "with the weights, level": lambda one: _at(one, "level", "cosines"),
    "weights: nearest of the group, %": lambda one: _percent(one["weights"]["neighbours"]),
}
COMPARED = ("sd of omega, T = 1", "sd of p_y there", "rank, level", "relations, level", "group share, %, level")


def markdown(study: Study, found: GridResult) -> str:
    """All tables."""
    lines = [f"### teachers, scale {study.scale}, commit {_commit()}", "", *_trained(study, found)]
    for part in study.ask:
        lines += ["", f"#### Stores, {part} rows", "", *_measures(study, found, part, CONFIDENCE), ""]
        lines += [*_measures(study, found, part, STRUCTURE), "", *_measure_contrasts(study, found, part)]
    for part in study.ask:
        lines += ["", f"#### Students, {part} rows", "", *_students(study, found, part)]
        lines += ["", *_contrasts(study, found, part), "", *_sweeps(study, found, part)]
    return "\n".join([*lines, "", *_saved(study, found)]) + "\n"


def scores(found: GridResult, arm: Arm, number: int, seeds: Sequence[int]) -> dict[int, float]:
    """Top-1 on the test rows in percent, by seed, of the finished students of one setting."""
    named = {seed: found.results.get(student_name(arm, number, seed)) for seed in seeds}
    return {seed: 100 * float(one["accuracy"]) for seed, one in named.items() if one is not None}


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """Differences of the seeds that both have."""
    return [one[seed] - other[seed] for seed in one if seed in other]


def shown(values: Sequence[float], *, digits: int = 2) -> str:
    """Mean difference with its interval."""
    if not values:
        return "-"
    interval = t_interval(values)
    ends = "" if interval is None else f" [{interval[0]:+.{digits}f}, {interval[1]:+.{digits}f}]"
    return f"{statistics.fmean(values):+.{digits}f}{ends}"


def write_results(study: Study, found: GridResult, folder: Path) -> None:
    """Tables (.table.md), finished cells (.json) and plots (.svg) as partial_kd-teachers.* in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    name = folder / "partial_kd-teachers"
    name.with_suffix(".table.md").write_text(markdown(study, found))
    cells = {cell: _brief(result) for cell, result in found.results.items()}
    chosen = {arm: dict(_arm(study, arm).settings[n]) for arm, n in chosen_settings(study, found.results).items()}
    document = {"scale": study.scale, "commit": _commit(), "chosen": chosen, "cells": to_json(cells)}
    name.with_suffix(".json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    drawn = plots(study, found)
    if drawn:
        name.with_suffix(".svg").write_text(svg_file(drawn, columns=2))


def plots(study: Study, found: GridResult) -> list[Panel]:
    """For every part: kd by temperature, and every contrast of kd; then what the stores hold."""
    panels = []
    for part in study.ask:
        swept = [arm for arm in study.arms if arm.part == part and arm.sweep and arm.teacher]
        panels += _by_temperature(study, found, part, [arm for arm in swept if "temperature" in arm.settings[0]])
        panels += _contrast_plot(study, found, part)
    return panels


def _trained(study: Study, found: GridResult) -> list[str]:
    lines = ["| teacher | validation top-1, % | NLL | ECE | training, s | epoch |", "|---|---|---|---|---|---|"]
    for teacher in study.teachers:
        cells = [found.results.get(f"teacher-{teacher}-seed{seed}") for seed in study.seeds]
        done = [one for one in cells if one is not None and "accuracy" in one]
        if done:
            columns = [[_number(one.get(key)) for one in done] for key in ("nll", "ece", "seconds", "epoch")]
            accuracy = _spread([100 * one["accuracy"] for one in done], 2)
            lines.append(f"| {teacher} | {accuracy} | " + " | ".join(_spread(values, 3) for values in columns) + " |")
    return lines


def _measures(
    study: Study, found: GridResult, part: str, columns: Mapping[str, Callable[[Figures], float | None]]
) -> list[str]:
    lines = ["| teacher | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for teacher in study.teachers:
        cells = [found.results.get(f"measure-{part}-{teacher}-seed{seed}") for seed in study.seeds]
        done = [one for one in cells if one is not None]
        if done:
            values = [_spread([column(one) for one in done], 3) for column in columns.values()]
            lines.append(f"| {teacher} | " + " | ".join(values) + " |")
    return lines


def _measure_contrasts(study: Study, found: GridResult, part: str) -> list[str]:
    columns = {name: column for name, column in {**CONFIDENCE, **STRUCTURE}.items() if name in COMPARED}
    lines = ["| difference of stores | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for one, other in study.contrasts:
        values = []
        for column in columns.values():
            sides = []
            for teacher in (one, other):
                cells = {seed: found.results.get(f"measure-{part}-{teacher}-seed{seed}") for seed in study.seeds}
                known = {seed: column(cell) for seed, cell in cells.items() if cell is not None}
                sides.append({seed: value for seed, value in known.items() if value is not None})
            values.append(shown(paired(sides[0], sides[1]), digits=3))
        lines.append(f"| {one} - {other} | " + " | ".join(values) + " |")
    return lines


def _students(study: Study, found: GridResult, part: str) -> list[str]:
    chosen = chosen_settings(study, found.results)
    arms = [arm for arm in study.arms if arm.part == part and arm.name in chosen]
    base = next((scores(found, arm, chosen[arm.name], study.seeds) for arm in arms if arm.method == "ce"), {})
    lines = ["| method | teacher | chosen | top-1, % | over ce [95 %] | over the plain teacher [95 %] | NLL | ECE |"]
    lines.append("|---" * 8 + "|")
    for method in (*study.own, *study.methods):
        plain = next((arm for arm in arms if arm.method == method and arm.teacher == PLAIN), None)
        usual = {} if plain is None else scores(found, plain, chosen[plain.name], study.seeds)
        for arm in (arm for arm in arms if arm.method == method):
            mine = scores(found, arm, chosen[arm.name], study.seeds)
            cells = [found.results.get(student_name(arm, chosen[arm.name], seed)) for seed in study.seeds]
            figures = [_spread([_number(one.get(key)) for one in cells if one], 3) for key in ("nll", "ece")]
            over = "-" if method == "ce" else shown(paired(mine, base))
            versus = "-" if not arm.teacher or arm is plain else shown(paired(mine, usual))
            lines.append(
                f"| {method} | {arm.teacher or '-'} | {_setting(arm, chosen[arm.name])} "
                f"| {_spread(list(mine.values()), 2)} | {over} | {versus} | {' | '.join(figures)} |"
            )
    return lines


def _contrasts(study: Study, found: GridResult, part: str) -> list[str]:
    lines = ["| difference of students | " + " | ".join(study.methods) + " |", "|---" * (1 + len(study.methods)) + "|"]
    for one, other in study.contrasts:
        values = [_contrast(study, found, part, one, other, method) for method in study.methods]
        if any(values):
            lines.append(f"| {one} - {other} | " + " | ".join(shown(value) for value in values) + " |")
    return lines


def _contrast(study: Study, found: GridResult, part: str, one: str, other: str, method: str) -> list[float]:
    chosen = chosen_settings(study, found.results)
    sides = []
    for teacher in (one, other):
        name = f"{part}-{teacher}-{method}"
        sides.append(scores(found, _arm(study, name), chosen[name], study.seeds) if name in chosen else {})
    return paired(sides[0], sides[1])


def _sweeps(study: Study, found: GridResult, part: str) -> list[str]:
    lines = []
    for method in study.sweep:
        arms = [arm for arm in study.arms if arm.part == part and arm.method == method]
        settings = [_setting(arms[0], number) for number in range(len(arms[0].settings))] if arms else []
        lines += [f"| {method} from | " + " | ".join(settings) + " |", "|---" * (1 + len(settings)) + "|"]
        for arm in arms:
            values = [list(scores(found, arm, n, study.seeds).values()) for n in range(len(arm.settings))]
            lines.append(f"| {arm.teacher} | " + " | ".join(_spread(value, 2) for value in values) + " |")
    return lines


def _saved(study: Study, found: GridResult) -> list[str]:
    """Teacher time, at the pace of the dumps."""
    stores = {
        (teacher, seed): found.results.get(f"store-{teacher}-seed{seed}")
        for teacher in study.teachers
        for seed in study.seeds
    }
    made = [one for one in stores.values() if one is not None and one["rows_and_views"]]
    if not made:
        return []
    seconds, rows = sum(one["seconds"] for one in made), sum(one["rows_and_views"] for one in made)
    read = [
        one
        for name, one in found.results.items()
        if name.startswith(("trial-", "student-")) and one.get("method") in study.methods and "rows" in one
    ]
    live = seconds / rows * sum(one["rows"] * one["epochs"] for one in read)
    size = sum(one["bytes"] for one in made)
    return [
        f"Teachers asked once each: {len(made)} dumps, {duration(seconds)}, {size / 1e6:.1f} MB. {len(read)} students "
        f"and trials read them; at the dumps' pace a live teacher would have worked {duration(live)}."
    ]


def _by_temperature(study: Study, found: GridResult, part: str, arms: Sequence[Arm]) -> list[Panel]:
    chosen = chosen_settings(study, found.results)
    base = next((arm for arm in study.arms if arm.part == part and arm.method == "ce" and arm.name in chosen), None)
    if base is None or not arms:
        return []
    without = scores(found, base, chosen[base.name], study.seeds)
    series = []
    for number, arm in enumerate(arms):
        points, band = [], []
        for n, setting in enumerate(arm.settings):
            gains = paired(scores(found, arm, n, study.seeds), without)
            if len(gains) == len(study.seeds):  # a setting that is not finished would be of other seeds
                t = float(setting["temperature"])
                points.append((t, statistics.fmean(gains)))
                interval = t_interval(gains)
                band += [(t, *interval)] if interval and arm.teacher == PLAIN else []
        if len(points) > 1:
            series.append(Series(name=arm.teacher, points=points, colour=colour_of(number), dots=True, band=band))
    if not series:
        return []
    values = [y for one in series for _, y in one.points] + [0.0]
    ticks = [float(setting["temperature"]) for setting in arms[0].settings]
    x = Axis(title="temperature", low=ticks[0], high=ticks[-1], log=True, ticks=ticks)
    y = Axis(title="gain over ce [points]", low=min(values) - 0.3, high=max(values) + 0.3)
    title = f"kd by temperature, {part} rows"
    legend = [(one.name, one.colour) for one in series]
    return [Panel(title=title, chart=line_chart(title, x, y, series), legend=legend)]


def _contrast_plot(study: Study, found: GridResult, part: str) -> list[Panel]:
    lines, used = [], {}
    for one, other in study.contrasts:
        for number, method in enumerate(study.methods):
            values = _contrast(study, found, part, one, other, method)
            if values:
                name = f"{one} - {other}"
                used[method] = colour_of(number)
                lines.append(
                    Interval(
                        name=name,
                        colour=colour_of(number),
                        values=values,
                        mean=statistics.fmean(values),
                        inner=None,
                        outer=t_interval(values),
                        tip=f"{name}, {method}",
                    )
                )
    if not lines:
        return []
    ends = [end for one in lines for end in (*one.values, *(one.outer or ()), 0.0)]
    axis = Axis(title="difference of students [points]", low=min(ends) - 0.1, high=max(ends) + 0.1)
    title = f"Teachers compared by their students, {part} rows"
    return [Panel(title=title, chart=interval_chart(title, axis, lines, guide=0.0), legend=list(used.items()))]


def _arm(study: Study, name: str) -> Arm:
    return next(arm for arm in study.arms if arm.name == name)


def _setting(arm: Arm, number: int) -> str:
    short = {"temperature": "T", "weight_decay": "wd"}
    words = [(name.removeprefix("options."), value) for name, value in arm.settings[number].items()]
    return ", ".join(f"{short.get(name, name)} {value:g}" for name, value in words)


def _at(one: Figures, where: str, name: str) -> float | None:
    return one["at"][where][name] if where in one["at"] else None


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _spread(values: Sequence[float | None], digits: int) -> str:
    """Mean and sd with so many decimals; large numbers, seconds for example, with none."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = statistics.fmean(known)
    digits = 0 if abs(mean) >= 1000 else 1 if abs(mean) >= 10 and digits > 2 else digits
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else "")


def _brief(result: Figures) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in ("weights", "store", "method_facts")}


def _commit() -> str:
    """The commit of the code, "+" where the tree was changed."""
    asked = ["git", "describe", "--always", "--dirty=+"]
    here = Path(__file__).parent
    return subprocess.run(asked, cwd=here, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
