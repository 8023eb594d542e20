"""What the students say: accuracy of every method and control, paired differences, where a policy distils over time.

Works on the results alone; trains nothing. The document around the tables is written by hand.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcache.features.table import DISTILLERS
from kdcache.html.axes import Axis, colour_of, percent
from kdcache.html.bars import Interval, interval_chart
from kdcache.html.charts import Series, line_chart
from kdcache.html.standalone import Panel, svg_file
from kdcache.report import t_interval
from pipelines.spot_adaptive.recipe import DUMP, TEACHER
from pipelines.spot_adaptive.routing import CONTROLS
from pipelines.spot_adaptive.sakd import BASELINES
from pipelines.spot_adaptive.teachers import NAMES

Result = Mapping[str, Any]
Pair = tuple[str, str]  # method and variant


def by_seed(results: Sequence[Result]) -> dict[Pair, dict[str, dict[int, Result]]]:
    """Results by (method, variant), control and seed."""
    found: dict[Pair, dict[str, dict[int, Result]]] = {}
    for result in results:
        pair = (result["method"], result["variant"])
        found.setdefault(pair, {}).setdefault(result["control"], {})[result["seed"]] = result
    return found


def accuracy_table(results: Sequence[Result]) -> str:
    """Markdown: mean and sd in % over seeds, one row per method, one column per control."""
    groups = by_seed(results)
    lines = ["| method | variant | seeds | " + " | ".join(CONTROLS) + " |", "|---" * (3 + len(CONTROLS)) + "|"]
    for (method, variant), controls in groups.items():
        seeds = max(len(runs) for runs in controls.values())
        cells = [_mean_sd([run["accuracy"] for run in controls.get(name, {}).values()]) for name in CONTROLS]
        if method in BASELINES:
            cells = [*(["-"] * len(CONTROLS))]
            cells[CONTROLS.index("always")] = _mean_sd([run["accuracy"] for run in controls["always"].values()])
        lines.append(f"| {method} | {variant or '-'} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def paired_gains(one: Mapping[int, Result], other: Mapping[int, Result]) -> list[float]:
    """Points of accuracy that `one` has more than `other`, seed by seed."""
    return [100 * (one[seed]["accuracy"] - other[seed]["accuracy"]) for seed in sorted({*one} & {*other})]


def comparisons(results: Sequence[Result]) -> list[tuple[str, list[float]]]:
    """Every claim as paired differences in points: adaptive against the controls, always against kd, kd against ce."""
    groups = by_seed(results)
    baseline = {method: groups[method, ""]["always"] for method in BASELINES if (method, "") in groups}
    found = []
    if len(baseline) == len(BASELINES):
        found.append(("kd - ce", paired_gains(baseline["kd"], baseline["ce"])))
    for (method, variant), controls in groups.items():
        if method in BASELINES:
            continue
        name = method if variant == "sakd" else f"{method} ({variant})"
        pairs = [("adaptive", other) for other in CONTROLS[1:]]
        for one, other in pairs:
            if one in controls and other in controls:
                found.append((f"{name}: {one} - {other}", paired_gains(controls[one], controls[other])))
        if "kd" in baseline and "always" in controls:
            found.append((f"{name}: always - kd", paired_gains(controls["always"], baseline["kd"])))
    return found


def pooled(results: Sequence[Result]) -> list[tuple[str, list[float]]]:
    """Adaptive against each control over all methods with several seeds: one mean over methods per seed."""
    groups = {pair: controls for pair, controls in by_seed(results).items() if pair[0] not in BASELINES}
    found = []
    for other in CONTROLS[1:]:
        gains = [
            paired_gains(controls["adaptive"], controls[other])
            for controls in groups.values()
            if "adaptive" in controls and other in controls
        ]
        whole = [each for each in gains if len(each) > 1]
        if whole:
            found.append(
                (
                    f"mean of {len(whole)} methods: adaptive - {other}",
                    [*map(statistics.fmean, zip(*whole, strict=False))],
                )
            )
    return found


def comparison_table(rows: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Markdown: mean difference in points with its 95 % interval, and each seed's."""
    lines = ["| difference | points [95 %] | each seed |", "|---|---|---|"]
    for name, gains in rows:
        lines.append(f"| {name} | {with_interval(gains)} | {', '.join(f'{gain:+.2f}' for gain in gains)} |")
    return "\n".join(lines)


def with_interval(gains: Sequence[float]) -> str:
    """+1.20 [0.10, 2.30]; the mean alone of one pair."""
    found = t_interval(gains)
    mean = f"{statistics.fmean(gains):+.2f}"
    return mean if found is None else f"{mean} [{found[0]:.2f}, {found[1]:.2f}]"


def share_table(results: Sequence[Result]) -> str:
    """Markdown: share of rows distilled per spot in the first and the last epoch, mean over seeds."""
    lines = ["| method | control | spot | first epoch | last epoch |", "|---|---|---|---|---|"]
    for (method, variant), controls in by_seed(results).items():
        for control, runs in controls.items():
            if method in BASELINES or control not in ("adaptive", "inverted"):
                continue
            for place, name in enumerate(_spots(method)):
                first, last = (
                    statistics.fmean(run["history"][at]["shares"][place] for run in runs.values()) for at in (0, -1)
                )
                shown = method if variant == "sakd" else f"{method} ({variant})"
                lines.append(f"| {shown} | {control} | {name} | {first:.3f} | {last:.3f} |")
    return "\n".join(lines)


def share_plot(results: Sequence[Result]) -> str:
    """SVG: share of rows distilled at each spot over the epochs, adaptive students, mean and range of seeds."""
    panels = []
    for (method, variant), controls in by_seed(results).items():
        if method in BASELINES or "adaptive" not in controls:
            continue
        runs = list(controls["adaptive"].values())
        lines = [_share_line(runs, place, name) for place, name in enumerate(_spots(method))]
        epochs = len(runs[0]["history"])
        title = f"{method}, {variant}: share of rows distilled"
        chart = line_chart(
            title,
            Axis(title="epoch", low=1, high=max(2, epochs), whole=True),
            Axis(title="share of rows", low=0, high=1, label=percent),
            lines,
        )
        panels.append(Panel(title=title, chart=chart, legend=[(line.name, line.colour) for line in lines]))
    return svg_file(panels, columns=2)


def accuracy_plot(results: Sequence[Result]) -> str:
    """SVG: accuracy of every method and control with each seed, baselines first."""
    groups = by_seed(results)
    lines = []
    for number, ((method, variant), controls) in enumerate(groups.items()):
        for control, runs in controls.items():
            values = [100 * run["accuracy"] for run in runs.values()]
            name = method if method in BASELINES else f"{method} {control}" + ("" if variant == "sakd" else " *")
            mean = statistics.fmean(values)
            spread = statistics.stdev(values) if len(values) > 1 else None
            inner = None if spread is None else (mean - spread, mean + spread)
            colour = colour_of(number)
            lines.append(
                Interval(name=name, colour=colour, values=values, mean=mean, inner=inner, outer=None, tip=name)
            )
    every = [value for line in lines for value in line.values]
    axis = Axis(title="test accuracy (%)", low=min(every) - 0.5, high=max(every) + 0.5)
    title = "Accuracy after the last epoch: seeds, mean and sd"
    return svg_file([Panel(title=title, chart=interval_chart(title, axis, lines))])


def _share_line(runs: Sequence[Result], place: int, name: str) -> Series:
    epochs = range(len(runs[0]["history"]))
    shares = [[run["history"][epoch]["shares"][place] for run in runs] for epoch in epochs]
    return Series(
        name=name,
        points=[(epoch + 1, statistics.fmean(values)) for epoch, values in zip(epochs, shares, strict=True)],
        colour=colour_of(place),
        band=[(epoch + 1, min(values), max(values)) for epoch, values in zip(epochs, shares, strict=True)],
    )


def _spots(method: str) -> list[str]:
    return [*(NAMES[spot] for spot in DISTILLERS[method].spots), "output"]


def _mean_sd(scores: Sequence[float]) -> str:
    if not scores:
        return "-"
    spread = f" ± {100 * statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    return f"{100 * statistics.fmean(scores):.2f}{spread}"


def document(results: Mapping[str, Result]) -> str:
    """Markdown of everything that is measured, from the results of all finished cells by name."""
    students = _students(results)
    if not students:
        return "no student is finished"
    rows = [*comparisons(students), *pooled(students)]
    parts = [
        "## Accuracy in % after the last epoch, mean ± sd over seeds",
        accuracy_table(students),
        "## Paired differences in points, 95 % t-intervals over seeds",
        comparison_table(rows),
        "## Share of rows distilled, by the policy's routes (inverted: by their opposite)",
        share_table(students),
        "## Time",
        time_table(results),
    ]
    return "\n\n".join(part for part in parts if part)


def time_table(results: Mapping[str, Result]) -> str:
    """Markdown: what teacher, dump and students took, and the teacher's time that the store saved."""
    students = _students(results)
    lines = ["| what | figure |", "|---|---|"]
    teacher, dump = results.get(TEACHER), results.get(DUMP)
    if teacher is not None:
        lines.append(f"| teacher trained | {teacher['seconds']:.0f} s, accuracy {teacher['accuracy']:.2%} |")
    used = [result for result in students if result["method"] != "ce" and result["variant"] != "sakd-live"]
    if dump is not None and dump.get("seconds"):
        alone = dump.get("teacher_seconds")
        per_row = (alone or dump["seconds"]) / dump["rows_written"]
        most = "" if alone else "at most "  # a dump made before its forward passes were timed: start-up and writing too
        views = sum(result["student_rows"] for result in used)
        lines += [
            f"| dumped once | {dump['seconds']:.0f} s for {dump['rows_written']:,} rows and views |",
            f"| read by {len(used)} students | {views:,} rows and views |",
            f"| teacher time saved | {most}{per_row * views - dump['seconds']:.0f} s of forward passes less the dump |",
        ]
    for control in CONTROLS:
        seconds = [r["seconds"] for r in students if r["control"] == control and r["method"] not in BASELINES]
        if seconds:
            lines.append(f"| a student, {control} | {statistics.fmean(seconds):.0f} processor seconds |")
    for method in BASELINES:
        seconds = [result["seconds"] for result in students if result["method"] == method]
        if seconds:
            lines.append(f"| a student, {method} | {statistics.fmean(seconds):.0f} processor seconds |")
    return "\n".join(lines)


def write_plots(results: Mapping[str, Result], folder: Path) -> None:
    """Write spot_adaptive.svg (accuracy), spot_adaptive-shares.svg (policies) and the tables beside them."""
    students = _students(results)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spot_adaptive.svg").write_text(accuracy_plot(students))
    (folder / "spot_adaptive-shares.svg").write_text(share_plot(students))
    (folder / "spot_adaptive-tables.md").write_text(document(results) + "\n")


def _students(results: Mapping[str, Result]) -> list[Result]:
    return [result for name, result in results.items() if name not in (TEACHER, DUMP) and "history" in result]
