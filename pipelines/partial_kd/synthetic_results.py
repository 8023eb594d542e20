"""Tables and a plot of the synthetic grid: methods down, correlations across. Nothing is run here.

Gains are paired by seed, over `ce` and over `ls`: what a method has beyond smoothing is what it takes from the teacher.
Intervals are 95 % t-intervals of the mean difference over seeds; they hold for this data set and teacher.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path

from kdcache.canonical import to_json
from kdcache.html.axes import Axis, colour_of
from kdcache.html.charts import Series, line_chart
from kdcache.html.standalone import Panel, svg_file
from kdcache.parallel import GridResult
from kdcache.progress import duration
from kdcache.report import t_interval
from pipelines.partial_kd.recipe import MAIN, Recipe
from pipelines.partial_kd.results import Row, rows_of, teacher_times

Done = Mapping[float, tuple[Recipe, GridResult]]
PARTS = ("kd-pt", "kd-sim", "kd-pt+sim")


def gains_over(rows: Mapping[str, Row], method: str, other: str) -> list[float]:
    """Differences in accuracy between two methods with the same seeds, in points; empty where one has no student."""
    if method not in rows or other not in rows:
        return []
    one, base = rows[method].figures, rows[other].figures
    return [100 * (one[seed]["accuracy"] - base[seed]["accuracy"]) for seed in one if seed in base]


def tables(done: Done) -> str:
    """Markdown: accuracies, gains over `ce` and over `ls`, chosen settings, and what the teachers cost."""
    rows = {tau2: {row.arm.name: row for row in rows_of(recipe, found)} for tau2, (recipe, found) in done.items()}
    names = list(dict.fromkeys(name for here in rows.values() for name in here))
    lines = ["Test accuracy in percent, mean ± sd over seeds:", "", *_head("method", done)]
    teachers = [found.results.get(f"teacher-{MAIN}", {}) for _, found in done.values()]
    lines.append(_line("teacher", [f"{100 * one['accuracy']:.1f}" if one else "-" for one in teachers]))
    lines += [_line(name, [_accuracies(here.get(name)) for here in rows.values()]) for name in names]
    for base in ("ce", "ls"):
        compared = [name for name in names if name not in ("ce", base)] if base in names else []
        if compared:
            lines += ["", f"Gain over `{base}` in points [95 %]:", "", *_head("method", done)]
            lines += [_line(name, [_gain(gains_over(here, name, base)) for here in rows.values()]) for name in compared]
    lines += ["", "Chosen on validation rows:", "", *_head("method", done)]
    lines += [_line(name, [_settings(here.get(name)) for here in rows.values()]) for name in names]
    return "\n".join([*lines, "", _teacher_time(done)]) + "\n"


def write_results(done: Done, folder: Path) -> None:
    """Tables (.table.md), every cell's accuracy (.json) and the plot (.svg) as partial_kd-synthetic.* in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "partial_kd-synthetic.table.md").write_text(tables(done))
    brief = {
        f"{tau2:g}": {name: {"accuracy": result.get("accuracy")} for name, result in found.results.items()}
        for tau2, (_, found) in done.items()
    }
    (folder / "partial_kd-synthetic.json").write_text(json.dumps(to_json(brief), indent=1, sort_keys=True) + "\n")
    panels = plots(done)
    if panels:
        (folder / "partial_kd-synthetic.svg").write_text(svg_file(panels, columns=2))


def plots(done: Done) -> list[Panel]:
    """Gain against correlation, one line a method with its interval: all methods over `ce`, the parts over `ls`."""
    rows = {tau2: {row.arm.name: row for row in rows_of(recipe, found)} for tau2, (recipe, found) in done.items()}
    names = list(dict.fromkeys(name for here in rows.values() for name in here if name != "ce"))
    colours = {name: colour_of(number) for number, name in enumerate(names)}
    panels = []
    for base, compared in (("ce", names), ("ls", [name for name in names if name in PARTS])):
        series = [_series(name, base, rows, colours[name]) for name in compared]
        series = [one for one in series if len(one.points) > 1]
        if not series:
            continue
        ends = [end for one in series for _, low, high in one.band for end in (low, high)]
        ends += [y for one in series for _, y in one.points] + [0.0]
        margin = 0.05 * (max(ends) - min(ends)) + 0.1
        x = Axis(title="cosine of two classes of a group", low=min(done), high=max(done), ticks=sorted(done))
        y = Axis(title=f"gain over {base} [points]", low=min(ends) - margin, high=max(ends) + margin)
        chart = line_chart(f"gain over {base} against correlation", x, y, series)
        legend = [(one.name, one.colour) for one in series]
        panels.append(Panel(title=f"Gain over {base} by seed, mean and 95 % interval", chart=chart, legend=legend))
    return panels


def _series(name: str, base: str, rows: Mapping[float, Mapping[str, Row]], colour: str) -> Series:
    gains = {tau2: found for tau2, here in sorted(rows.items()) if (found := gains_over(here, name, base))}
    intervals = {tau2: t_interval(found) for tau2, found in gains.items()}
    return Series(
        name=name,
        colour=colour,
        points=[(tau2, statistics.fmean(found)) for tau2, found in gains.items()],
        band=[(tau2, *interval) for tau2, interval in intervals.items() if interval is not None],
        dots=True,
    )


def _teacher_time(done: Done) -> str:
    times = [time for recipe, found in done.values() for time in teacher_times(recipe, found)]
    readers, size = sum(time.readers for time in times), sum(time.bytes for time in times)
    return (
        f"Teacher time saved: {len(times)} teachers asked once, {duration(sum(time.dump for time in times))} and "
        f"{size / 1e6:.1f} MB together; the {readers} students and trials that read them would have asked for "
        f"{'at most ' if any(time.bound for time in times) else ''}{duration(sum(time.live for time in times))}."
    )


def _head(first: str, done: Done) -> list[str]:
    return [_line(first, [f"τ² = {tau2:g}" for tau2 in done]), "|---" * (len(done) + 1) + "|"]


def _line(first: str, cells: list[str]) -> str:
    return f"| {first} | " + " | ".join(cells) + " |"


def _accuracies(row: Row | None) -> str:
    if row is None:
        return "-"
    values = [100 * one["accuracy"] for one in row.figures.values()]
    return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def _gain(values: list[float]) -> str:
    if not values:
        return "-"
    interval = t_interval(values)
    return f"{statistics.fmean(values):+.1f}" + (f" [{interval[0]:+.1f}, {interval[1]:+.1f}]" if interval else "")


def _settings(row: Row | None) -> str:
    short = {"temperature": "T", "weight_decay": "wd", "options.smoothing": "eps"}
    return "-" if row is None else ", ".join(f"{short.get(name, name)} {value}" for name, value in row.tuned.items())
