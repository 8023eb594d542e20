"""What a sweep says: heat maps, rank correlations, selector, distillation hypothesis, time saved. Runs nothing."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdcache.html.standalone import Panel, svg_file
from kdcache.html.value_grid import value_grid
from kdcache.parallel import GridResult
from kdcache.progress import duration
from pipelines.teacher_sweep.cells import ARMS, chosen_lr, student_name
from pipelines.teacher_sweep.inference import half_width, permutation_p, pooled_sd, rank_correlation
from pipelines.teacher_sweep.metrics import METRICS
from pipelines.teacher_sweep.selector import STRUCTURE, WITHIN, Row, by_role, rows_of, select, under_test
from pipelines.teacher_sweep.sweep import Sweep, Teacher

AT_CHANCE = 1.5  # times the accuracy of guessing


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The results of one sweep, gathered.

    Attributes:
        rows: teachers; students: name -> test accuracies by seed, in per cent; ce: those without a teacher.
        tests: name -> arm -> accuracies; roles: name -> why this teacher was tested.
        sd, freedom: of a student over seeds, common to all arms; NaN and 0 with one seed.
        lr: of the students; trials: rate -> validation accuracy in per cent.
        teacher_seconds, dump_seconds, student_seconds: in all.
        asked: epochs of students that would have asked a live teacher.
        chance: accuracy of guessing, in per cent.
    """

    rows: list[Row]
    students: dict[str, list[float]]
    ce: list[float]
    tests: dict[str, dict[str, list[float]]]
    roles: dict[str, str]
    sd: float
    freedom: int
    lr: float
    trials: dict[str, float]
    teacher_seconds: float
    dump_seconds: float
    student_seconds: float
    asked: int
    chance: float

    @property
    def scores(self) -> dict[str, float]:
        """Mean student of each teacher."""
        return {name: statistics.fmean(found) for name, found in self.students.items()}


def gather(sweep: Sweep, grid: GridResult) -> Findings:
    """From the results of the cells; students that are missing are left out.

    Raises:
        KeyError: a teacher has no student at all, or a store or trial is missing.
    """
    results = grid.results
    rows = rows_of(sweep, results)

    def scores(teacher: Teacher, arm: str) -> list[float]:
        names = [student_name(teacher, arm, seed) for seed in sorted({*sweep.seeds, *sweep.tested_seeds})]
        return [100 * float(results[name]["accuracy"]) for name in names if name in results]

    students = {row.name: scores(row.teacher, "true") for row in rows}
    tested = under_test(rows, sweep.tested)
    tests = {row.name: {arm: scores(row.teacher, arm) for arm in ARMS} for row, _ in tested}
    ce = scores(rows[0].teacher, "ce")
    controls = [found for arms in tests.values() for arm, found in arms.items() if arm != "true"]
    sd, freedom = pooled_sd([*students.values(), *controls, ce])
    trained = [found for found in results.values() if "method" in found]
    return Findings(
        rows=rows,
        students={name: found for name, found in students.items() if found},
        ce=ce,
        tests=tests,
        roles={row.name: why for row, why in tested},
        sd=sd,
        freedom=freedom,
        lr=chosen_lr(sweep, results),
        trials={
            f"{lr:g}": 100 * float(results[f"trial-lr{lr:g}"]["accuracy"])
            for lr in sweep.student_lr
            if f"trial-lr{lr:g}" in results
        },
        teacher_seconds=sum(float(results[f"teacher-b{size}"]["seconds"]) for size in sweep.batch_sizes),
        dump_seconds=sum(float(results[f"store-{one.name}"]["seconds"]) for one in sweep.teachers),
        student_seconds=sum(float(found["seconds"]) for found in trained),
        asked=sum(int(found["epochs"]) for found in trained if found["method"] in ("kd", "kd-pt")),
        chance=_chance(results[f"store-{rows[0].name}"]),
    )


def report(sweep: Sweep, grid: GridResult) -> str:
    """Markdown of one data set."""
    found = gather(sweep, grid)
    return "\n".join(
        [
            f"## {sweep.name}",
            "",
            *_setting(sweep, found),
            *_teachers(found),
            *_correlations(sweep, found),
            *_selector(sweep, found),
            *_hypothesis(found),
            *_saved(sweep, grid, found),
        ]
    )


def heat_maps(sweep: Sweep, grid: GridResult) -> str:
    """SVG: accuracies and metrics over batch size and epochs; the selector's choice is framed."""
    found = gather(sweep, grid)
    chosen = select(found.rows).teacher
    marked = [(sweep.batch_sizes.index(chosen.batch_size), sweep.epochs.index(chosen.epochs))]
    by_name = {row.name: row for row in found.rows}
    shown = {
        "teacher, validation %": {name: 100 * row.val_accuracy for name, row in by_name.items()},
        "teacher, its own rows %": {name: 100 * row.train_accuracy for name, row in by_name.items()},
        "student, test %": found.scores,
        **{
            f"{metric}, T = {sweep.temperature:g}": {name: row.metrics[metric] for name, row in by_name.items()}
            for metric in METRICS
        },
    }
    panels = []
    for title, values in shown.items():
        lines = [
            [values.get(Teacher(batch_size=size, epochs=epochs).name, math.nan) for epochs in sweep.epochs]
            for size in sweep.batch_sizes
        ]
        chart = value_grid(
            title,
            [str(size) for size in sweep.batch_sizes],
            [str(epochs) for epochs in sweep.epochs],
            lines,
            row_title="batch size",
            column_title="epochs",
            show=lambda value: f"{value:.1f}" if value >= 10 else f"{value:.3g}",
            marked=marked,
        )
        panels.append(Panel(title=title, chart=chart))
    return svg_file(panels, columns=3)


def write_results(sweep: Sweep, grid: GridResult, folder: Path, circumstances: Mapping[str, Any]) -> None:
    """`teacher_sweep-NAME.md`, `.svg` and `.json` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"teacher_sweep-{sweep.name}"
    about = ", ".join(f"{key} {value}" for key, value in circumstances.items())
    framed = "Framed: the selector's choice. The darkest cell is the largest value of its map."
    text = f"{report(sweep, grid)}\n![heat maps](teacher_sweep-{sweep.name}.svg)\n\n{framed}\n\n{about}\n"
    stem.with_suffix(".md").write_text(text)
    stem.with_suffix(".svg").write_text(heat_maps(sweep, grid))
    document = {**asdict(gather(sweep, grid)), "circumstances": dict(circumstances)}
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")


def verdict(
    arms: Mapping[str, Sequence[float]], ce: Sequence[float], sd: float, freedom: int, *, chance: float = 0.0
) -> str:
    """Distillation, regularisation, both short of it, or not decidable; by 95 % intervals of differences of means.

    Without a teacher at chance, the students' setting was wrong, and being better says nothing of teachers.

    Args:
        arms: arm -> accuracies in per cent, "true" among them; ce: without a teacher.
        sd, freedom: of one student over seeds, common to all.
        chance: accuracy of guessing, in per cent.
    """
    if not freedom or any(not found for found in (*arms.values(), ce)):
        return "not decidable"
    if statistics.fmean(ce) < AT_CHANCE * chance:
        return "not decidable: without a teacher at chance"
    true = arms["true"]
    over = {name: _difference(true, found, sd, freedom) for name, found in {**arms, "ce": ce}.items() if name != "true"}
    if over["ce"][0] + over["ce"][1] < 0:
        return "harm"
    if over["ce"][0] - over["ce"][1] <= 0:
        return "no gain"
    if all(mean > half for mean, half in over.values()):
        return "distillation"
    if all(abs(over[name][0]) <= over[name][1] for name in ("permuted", "ls")):
        return "regularisation"
    beaten = [name for name, (mean, half) in over.items() if mean > half and name != "ce"]
    return f"beats {' and '.join(beaten)} only" if beaten else "loses to a control"


def _setting(sweep: Sweep, found: Findings) -> list[str]:
    tried = ", ".join(f"{lr}: {score:.1f} %" for lr, score in found.trials.items())
    chosen = f"learning rate {found.lr:g}" + (f" (validation accuracy by rate: {tried})" if tried else "")
    sd = f"{found.sd:.2f} points ({found.freedom} degrees of freedom)" if found.freedom else "not known (one seed)"
    return [
        f"Teachers: {sweep.teacher['model']} on `{sweep.rows}`, validated on `{sweep.val}`. Students: "
        f"{sweep.student['model']}, {sweep.student['epochs']} epochs, {chosen}, kd at T = {sweep.temperature:g}, "
        f"test on `{sweep.test}`. Without a teacher (ce): {_mean_sd(found.ce)} %. Standard deviation of a student over "
        f"seeds: {sd}.",
        "",
    ]


def _teachers(found: Findings) -> list[str]:
    lines = [
        "| teacher | validation % | own rows % | " + " | ".join(METRICS) + " | student % | seeds |",
        "|---" * (5 + len(METRICS)) + "|",
    ]
    for row in found.rows:
        metrics = " | ".join(f"{row.metrics[name]:.3g}" for name in METRICS)
        scores = found.students.get(row.name, [])
        accuracies = f"{100 * row.val_accuracy:.1f} | {100 * row.train_accuracy:.1f}"
        lines.append(f"| {row.name} | {accuracies} | {metrics} | {_mean_sd(scores)} | {len(scores)} |")
    return [*lines, ""]


def _correlations(sweep: Sweep, found: Findings) -> list[str]:
    rows = [row for row in found.rows if row.name in found.students]
    scores = [found.scores[row.name] for row in rows]
    val = [row.val_accuracy for row in rows]
    lines = [
        f"Spearman's rho with the student's accuracy over {len(rows)} teachers; p by permutation; partial: with the "
        "teacher's validation accuracy taken out.",
        "",
        f"| | rho, T = {sweep.temperature:g} | p | partial | p | rho, T = 1 | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, values in (("val_accuracy", val), ("train_accuracy", [row.train_accuracy for row in rows])):
        lines.append(f"| {name} | {_rho(values, scores)} | - | - | - | - |")
    for name in METRICS:
        at_t, at_1 = [row.metrics[name] for row in rows], [row.plain[name] for row in rows]
        shown = f"{_rho(at_t, scores)} | {_rho(at_t, scores, given=val)} | {_rho(at_1, scores)}"
        lines.append(f"| {name} | {shown} |")
    return [*lines, ""]


def _selector(sweep: Sweep, found: Findings) -> list[str]:
    best = max(found.scores, key=lambda name: found.scores[name])
    lines = [
        f"Selector: most `{STRUCTURE}` within {100 * WITHIN:g} points of the best validation accuracy. Best teacher by "
        f"its students: {best} ({_mean_sd(found.students[best])} %; the best of {len(found.scores)} is flattered by "
        f"noise). Mean over all teachers: {statistics.fmean(found.scores.values()):.2f} %.",
        "",
        "| choice | teacher | student % | behind the best, points [95 %] |",
        "|---|---|---|---|",
    ]
    for role, row in by_role(found.rows).items():
        if row.name in found.students:
            behind = "-" if row.name == best else _shown(found, found.students[best], found.students[row.name])
            lines.append(f"| {role} | {row.name} | {_mean_sd(found.students[row.name])} | {behind} |")
    return [*lines, ""]


def _hypothesis(found: Findings) -> list[str]:
    lines = [
        "True minus a control, in points with 95 % intervals:",
        "",
        "| teacher | true | permuted | kd-pt | ls | - permuted | - kd-pt | - ls | - ce | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, arms in found.tests.items():
        shown = " | ".join(_mean_sd(arms[arm]) for arm in ARMS)
        others = (arms["permuted"], arms["kd-pt"], arms["ls"], found.ce)
        differences = " | ".join(_shown(found, arms["true"], other) for other in others)
        why = f" ({found.roles[name]})" if found.roles[name] else ""
        decided = verdict(arms, found.ce, found.sd, found.freedom, chance=found.chance)
        lines.append(f"| {name}{why} | {shown} | {differences} | {decided} |")
    return [*lines, ""]


def _saved(sweep: Sweep, grid: GridResult, found: Findings) -> list[str]:
    stores = [grid.results[f"store-{one.name}"] for one in sweep.teachers]
    size, rows = (sum(int(store[key]) for store in stores) for key in ("bytes", "rows"))
    trained = f"Training: teachers {duration(found.teacher_seconds)}, students {duration(found.student_seconds)}."
    asked = f"The students' epochs would have asked a live teacher {found.asked} times for all rows"
    kept = f"{size / 1e6:.1f} MB, {size / rows:.0f} bytes a row"
    ready = sum(not store["seconds"] for store in stores)
    if ready:
        known = f"{ready} of {len(stores)} stores were found ready, what they took is not known here ({kept})"
        return [f"Teacher time: {known}. {asked}. {trained}", ""]
    # A store made before forward passes were timed says what start-up and writing took too.
    alone = [store.get("teacher_seconds") or store["seconds"] for store in stores]
    most = "" if all(store.get("teacher_seconds") for store in stores) else "at most "
    live = found.asked * statistics.fmean(alone)
    gain = live - found.dump_seconds
    saved = f"saved: {most}{duration(gain)}" if gain > 0 else f"nothing saved, the dumps took {duration(-gain)} more"
    return [
        f"Teacher time: {len(stores)} dumps, one for each teacher, {found.dump_seconds:.0f} s in all, of which "
        f"{most}{sum(alone):.1f} s in their forward passes ({kept}). "
        f"{asked}, {most}{duration(live)} of forward passes; {saved}. {trained}",
        "",
    ]


def _chance(store: Mapping[str, Any]) -> float:
    """100 / K, from the bytes that all logits of a store's rows in one view would take."""
    return 100 / (int(store["full_logits_bytes"]) / (4 * int(store["rows"])))


def _rho(values: Sequence[float], scores: Sequence[float], given: Sequence[float] | None = None) -> str:
    p = permutation_p(values, scores, given=given)
    return f"{rank_correlation(values, scores, given=given):+.2f} | {'< 0.001' if p < 0.001 else f'{p:.3f}'}"


def _difference(one: Sequence[float], other: Sequence[float], sd: float, freedom: int) -> tuple[float, float]:
    return statistics.fmean(one) - statistics.fmean(other), half_width(sd, freedom, len(one), len(other))


def _shown(found: Findings, one: Sequence[float], other: Sequence[float]) -> str:
    if not one or not other:
        return "-"
    mean, half = _difference(one, other, found.sd, found.freedom)
    return f"{mean:+.2f}" + ("" if math.isnan(half) else f" [{mean - half:+.2f}, {mean + half:+.2f}]")


def _mean_sd(scores: Sequence[float]) -> str:
    if not scores:
        return "-"
    return f"{statistics.fmean(scores):.2f}" + (f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else "")
