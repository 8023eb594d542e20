"""The page about finished runs: methods compared, training curves over seeds, calibration. Reads run folders only."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.html.axes import Axis, colour_of, percent, round_ticks, short
from kdcache.html.bars import Interval, interval_chart
from kdcache.html.charts import Series, line_chart, numbers_of, reliability
from kdcache.html.markup import Html, element
from kdcache.html.page import Column, Section, figure, grid, page, table, tiles
from kdcache.pages.wording import place_name, shared_facts
from kdcache.report import ReportRow, compare_runs, group_runs, t_interval

# (name in metrics.jsonl, title, unit, is a share): what is drawn, where runs have it; {rows}: the evaluation rows.
CURVES = (
    ("test_top1", "Accuracy on {rows}", "top-1", True),
    ("test_nll", "NLL on {rows}", "nats", False),
    ("train_accuracy", "Training accuracy", "top-1", True),
    ("train_agreement", "Agreement with the teacher on training rows", "same class", True),
    ("train_loss", "Training loss", "nats; methods weigh it differently", False),
)
LINES_SHOWN = 8  # colours that can be told apart


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: its folder, result.json and the lines of metrics.jsonl."""

    folder: Path
    result: Mapping[str, Any]
    epochs: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of one method and setting, as `report` compares them."""

    row: ReportRow
    runs: tuple[Run, ...]
    colour: str


def runs_page(places: Sequence[str | Path]) -> str:
    """The page as one HTML document.

    Args:
        places: run folders, or folders of run folders.

    Raises:
        NotFoundError, ConfigError: as `compare_runs`.
    """
    rows = compare_runs(places)
    members = group_runs(places)
    groups = [
        Group(
            row=row,
            runs=tuple(
                Run(folder=folder, result=result, epochs=read_epochs(folder)) for folder, result in members[row.label]
            ),
            colour=colour_of(number),
        )
        for number, row in enumerate(sorted(rows, key=lambda row: -row.accuracy))
    ]
    first = groups[0].runs[0].result
    sections = [_comparison(groups)]
    curves = _curves(groups)
    if curves:
        lead = "Mean over seeds; the band is the mean plus and minus one standard deviation."
        sections.append(Section(title="Training", anchor="training", lead=lead, body=grid(curves)))
    calibrated = _calibration(groups)
    if calibrated is not None:
        sections.append(calibrated)
    sections += [_runs(groups), _setting(first)]
    title = f"Students: {first.get('student', 'model')} on {first.get('dataset', 'data')}"
    subtitle = f"{sum(len(group.runs) for group in groups)} runs of {len(groups)} methods or settings"
    return page(title, sections, subtitle=subtitle, top=_tiles(groups))


def read_epochs(folder: Path) -> tuple[Mapping[str, Any], ...]:
    """The lines of a run's metrics.jsonl in order; what is torn or no epoch is left out: it may be being written."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    found: dict[int, Mapping[str, Any]] = {}
    for line in lines:
        try:
            item = json.loads(line)
        except ValueError:
            continue
        if isinstance(item, dict) and isinstance(item.get("epoch"), int):
            found[item["epoch"]] = item
    return tuple(found[epoch] for epoch in sorted(found))


def _tiles(groups: Sequence[Group]) -> Html:
    best = groups[0].row
    items = [("Best accuracy", f"{best.accuracy:.2%}", f"{best.label}, mean of {best.runs}")]
    gains = [group.row for group in groups if group.row.gain is not None]
    if gains:
        top = max(gains, key=lambda row: row.gain or 0.0)
        sure = "" if top.gain_low is None else f", 95% {100 * top.gain_low:+.2f} to {100 * (top.gain_high or 0):+.2f}"
        items.append(("Best gain over ce", f"{100 * (top.gain or 0):+.2f}", f"points, {top.label}{sure}"))
    honest = min((group.row for group in groups), key=lambda row: row.ece)
    items.append(("Best calibrated", f"{honest.ece:.3f}", f"ECE, {honest.label}"))
    agreeing = [group.row for group in groups if group.row.agreement is not None]
    if agreeing:
        close = max(agreeing, key=lambda row: row.agreement or 0.0)
        items.append(("Closest to the teacher", f"{close.agreement:.1%}", f"agreement, {close.label}"))
    return tiles(items)


def _comparison(groups: Sequence[Group]) -> Section:
    lines, every = [], []
    for group in groups:
        row = group.row
        values = [float(run.result["accuracy"]) for run in group.runs]
        inner = None if row.accuracy_sd is None else (row.accuracy - row.accuracy_sd, row.accuracy + row.accuracy_sd)
        outer = t_interval(values)
        every += [*values, *(inner or ()), *(outer if outer and outer[1] - outer[0] < 0.5 else ())]
        tip = f"{row.label}\n{row.accuracy:.2%}, {row.runs} runs"
        if row.accuracy_sd is not None and outer is not None:
            tip += f"\nsd {100 * row.accuracy_sd:.2f} points\n95% {outer[0]:.2%} to {outer[1]:.2%}"
        lines.append(
            Interval(
                name=row.label, colour=group.colour, values=values, mean=row.accuracy, inner=inner, outer=outer, tip=tip
            )
        )
    low, high = _ends(every)
    axis = Axis(title=f"accuracy on {_evaluation_rows(groups)}", low=max(low, 0), high=min(high, 1), label=percent)
    accuracy = figure(
        "Accuracy",
        interval_chart("Accuracy by method", axis, lines),
        caption="Large dots: means over seeds; faint dots: runs. Thick: one standard deviation. Thin: 95% t-interval.",
    )
    charts = [accuracy]
    gains = [_gain_line(group) for group in groups if group.row.gain is not None]
    if gains:
        low, high = _ends([0.0, *(value for line in gains for value in (line.mean, *_bounded(line.outer)))])
        axis = Axis(title="points over ce with the same seed", low=low, high=high, label=lambda v: f"{100 * v:+.3g}")
        charts.append(
            figure(
                "Gain over cross-entropy",
                interval_chart("Gain over cross-entropy by method", axis, gains, guide=0.0),
                caption="Seeds are paired; the line is the 95% t-interval of the mean gain. Left of 0: worse than ce.",
            )
        )
    charts.append(figure("In numbers", _methods_table(groups), wide=True))
    return Section(title="Methods", anchor="methods", body=grid(charts))


def _bounded(interval: tuple[float, float] | None) -> tuple[float, ...]:
    """The ends of an interval, unless it is so wide (two seeds) that it would flatten all others."""
    return interval if interval is not None and interval[1] - interval[0] < 0.5 else ()


def _gain_line(group: Group) -> Interval:
    row = group.row
    assert row.gain is not None
    outer = None if row.gain_low is None or row.gain_high is None else (row.gain_low, row.gain_high)
    sure = "" if outer is None else f"\n95% {100 * outer[0]:+.2f} to {100 * outer[1]:+.2f}"
    tip = f"{row.label}\n{100 * row.gain:+.2f} points, {row.pairs} pairs of seeds{sure}"
    return Interval(name=row.label, colour=group.colour, values=(), mean=row.gain, inner=None, outer=outer, tip=tip)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = max(0.06 * (high - low), 0.002)
    ticks = round_ticks(low - room, high + room, 4)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 2 * room
    return min(low - room, ticks[0] - step * 0.02), max(high + room, ticks[-1] + step * 0.02)


def _methods_table(groups: Sequence[Group]) -> Html:
    titles = ["runs", "accuracy %", "sd", "gain over ce", "95%", "NLL", "ECE", "agreement %", "on train %", "seconds"]
    rows = []
    for group in groups:
        row = group.row
        interval = (
            ""
            if row.gain_low is None or row.gain_high is None
            else (f"{100 * row.gain_low:+.2f} to {100 * row.gain_high:+.2f}")
        )
        rows.append(
            [
                row.label,
                str(row.runs),
                f"{100 * row.accuracy:.2f}",
                "" if row.accuracy_sd is None else f"{100 * row.accuracy_sd:.2f}",
                "" if row.gain is None else f"{100 * row.gain:+.2f}",
                interval,
                f"{row.nll:.3f}",
                f"{row.ece:.3f}",
                *("" if value is None else f"{100 * value:.1f}" for value in (row.agreement, row.train_agreement)),
                f"{row.seconds:.1f}",
            ]
        )
    columns = [Column(title="method"), *(Column(title=title, numeric=True) for title in titles)]
    used = [place for place in range(len(columns)) if any(line[place] for line in rows)]
    columns, rows = [columns[place] for place in used], [[line[place] for place in used] for line in rows]
    return table(columns, rows, caption="Means over seeds; seconds of training steps", search=len(rows) > 12)


def _curves(groups: Sequence[Group]) -> list[Html]:
    drawn = []
    for name, wording, unit, is_share in CURVES:
        title = wording.format(rows=_evaluation_rows(groups))
        series = [line for group in groups[:LINES_SHOWN] if (line := _curve(group, name)) is not None]
        if not any(len(line.points) > 1 for line in series):  # evaluated once: the figures above say it
            continue
        values = [value for line in series for _, low, high in (line.band or ()) for value in (low, high)]
        values += [value for line in series for _, value in line.points]
        low, high = min(values), max(values)
        room = 0.04 * (high - low) or 0.01
        low, high = (max(0.0, low - room), min(1.0, high + room)) if is_share else (max(0.0, low - room), high + room)
        last = max(line.points[-1][0] for line in series)
        show = _share if is_share else short
        axis = Axis(title=unit, low=low, high=high, label=percent if is_share else short)
        epochs = Axis(title="epoch", low=min(line.points[0][0] for line in series), high=max(last, 2), whole=True)
        note = f"The {LINES_SHOWN} most accurate of {len(groups)}." if len(groups) > LINES_SHOWN else None
        drawn.append(
            figure(
                title,
                line_chart(title, epochs, axis, series, show=show),
                caption=note,
                numbers=numbers_of("epoch", series, caption=f"{title}, mean over seeds", show=show),
            )
        )
    return drawn


def _evaluation_rows(groups: Sequence[Group]) -> str:
    """The split all runs were evaluated on, by name: what is compared shares it."""
    return str(groups[0].runs[0].result.get("eval_split") or "the evaluation rows")


def _curve(group: Group, name: str) -> Series | None:
    """Mean over the runs that have an epoch; an epoch that only some seeds reached is left out."""
    by_epoch: dict[int, list[float]] = {}
    for run in group.runs:
        for line in run.epochs:
            value = line.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                by_epoch.setdefault(int(line["epoch"]), []).append(float(value))
    most = max((len(values) for values in by_epoch.values()), default=0)
    whole = sorted((epoch, values) for epoch, values in by_epoch.items() if len(values) == most)
    if not whole:
        return None
    points = [(float(epoch), statistics.fmean(values)) for epoch, values in whole]
    band = []
    if most > 1:
        spread = [statistics.stdev(values) for _, values in whole]
        band = [(x, mean - sd, mean + sd) for (x, mean), sd in zip(points, spread, strict=True)]
    return Series(name=group.row.label, colour=group.colour, points=points, band=band, dots=len(points) <= 12)


def _share(value: float) -> str:
    return f"{100 * value:.2f}%"


def _calibration(groups: Sequence[Group]) -> Section | None:
    """Reliability of each method over its seeds, where the runs recorded the bins."""
    found = []
    for group in groups[:LINES_SHOWN]:
        bins = pooled_bins([run.result.get("calibration") for run in group.runs])
        if bins:
            found.append((group.row.label, group.colour, bins))
    if not found:
        return None
    rows = [[name, f"{a:.1%}", f"{b:.1%}", f"{n:,}"] for name, _, bins in found for a, b, n in bins if n]
    columns = [Column(title="method"), *(Column(title=t, numeric=True) for t in ("confidence", "accuracy", "rows"))]
    chart = figure(
        "Are students as right as they are sure?",
        reliability("Accuracy by confidence", found),
        caption="On the dashed line a student is as right as it is sure; below it, it is too sure. Seeds are pooled.",
        numbers=table(columns, rows, caption=f"Accuracy by confidence on {_evaluation_rows(groups)}, all seeds"),
    )
    return Section(title="Calibration", anchor="calibration", body=grid(chart))


def pooled_bins(recorded: Sequence[Any]) -> list[tuple[float, float, int]]:
    """(confidence, accuracy, rows) of each bin over several runs' `calibration`; empty where none has a usable one."""
    sums: list[list[float]] = []
    for item in recorded:
        if not isinstance(item, dict):
            continue
        parts = [item.get(name) for name in ("confidence", "accuracy", "count")]
        if not all(isinstance(part, list) and len(part) == len(parts[0] or []) for part in parts):
            continue
        bins = list(zip(*(part or [] for part in parts), strict=True))
        if not all(isinstance(value, int | float) for one in bins for value in one if value is not None):
            continue
        sums = sums or [[0.0, 0.0, 0.0] for _ in bins]
        if len(sums) != len(bins):
            continue
        for total, (sure, right, count) in zip(sums, bins, strict=True):
            total[0] += float(sure or 0) * count
            total[1] += float(right or 0) * count
            total[2] += count
    return [(a / n if n else 0.0, b / n if n else 0.0, int(n)) for a, b, n in sums]


def _runs(groups: Sequence[Group]) -> Section:
    columns = [
        Column(title="method"),
        Column(title="seed", numeric=True),
        *(
            Column(title=t, numeric=True)
            for t in ("accuracy %", "best %", "top-5 %", "NLL", "ECE", "epochs", "seconds")
        ),
        Column(title="folder"),
    ]
    rows = []
    for group in groups:
        for run in group.runs:
            result = run.result
            rows.append(
                [
                    group.row.label,
                    str(result.get("seed", "")),
                    *(_number(result.get(name), 100, 2) for name in ("accuracy", "accuracy_best", "top5")),
                    *(_number(result.get(name), 1, 3) for name in ("nll", "ece")),
                    str(result.get("epochs", "")),
                    _number(result.get("seconds"), 1, 1),
                    place_name(str(run.folder)),
                ]
            )
    listing = table(columns, rows, caption="All runs; best: the best epoch, chosen on the same rows", search=True)
    return Section(title="Runs", anchor="runs", body=listing)


def _number(value: Any, factor: float, digits: int) -> str:
    return f"{factor * value:.{digits}f}" if isinstance(value, int | float) else ""


def _setting(result: Mapping[str, Any]) -> Section:
    shown = ("student", "parameters", "dataset", "split", "eval_split", "rows", "test_rows", "epochs", "batch_size")
    pairs = [(name.replace("_", " "), str(result[name])) for name in shown if name in result]
    if result.get("store"):
        pairs.append(("store", place_name(str(result["store"]))))
    if result.get("store_key"):
        pairs.append(("store key", str(result["store_key"])))
    body = element("div", {"class": "card"}, shared_facts(pairs))
    return Section(title="What all runs share", anchor="setting", body=body)
