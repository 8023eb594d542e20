"""Table and plot of the faithfulness grid, from the cells that are finished. Nothing is run here."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# 97.5 % quantile of Student's t by degrees of freedom, for the few seeds there are (Fisher and Yates' table).
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

STUDENTS = ("initial", "short", "final")


def collect(plan: Mapping[str, Any], cells: Path, folder: Path) -> None:
    """Write faithfulness.json (all cells), faithfulness.md (tables) and faithfulness.svg into a folder."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(cells.glob("*.json"))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "faithfulness.json").write_text(json.dumps(brief(found), indent=1, sort_keys=True) + "\n")
    (folder / "faithfulness.md").write_text(tables(plan, found))
    plot(plan, found, folder / "faithfulness.svg")


def brief(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What is worth keeping of every cell."""
    kept = (
        "accuracy",
        "nll",
        "ece",
        "train_accuracy",
        "train_loss",
        "seconds",
        "teacher_seconds",
        "lr",
        "rows",
        "bytes",
    )
    about = ("commit", "processor", "torch", "threads", "load", "wall_seconds", "finished")
    return {
        name: {
            "figures": cell["figures"]
            if name == "gradients"
            else {key: cell["figures"][key] for key in (*kept, "top1") if key in cell["figures"]},
            "lr": cell["settings"].get("lr"),
            **{key: cell[key] for key in about},
        }
        for name, cell in cells.items()
    }


def accuracies(cells: Mapping[str, Mapping[str, Any]], arm: str, seeds: Sequence[int]) -> dict[int, float]:
    """Test top-1 in per cent by seed, of the finished students of an arm."""
    names = {seed: f"{arm}-seed{seed}" for seed in seeds}
    return {seed: 100 * cells[name]["figures"]["accuracy"] for seed, name in names.items() if name in cells}


def seeds_of(plan: Mapping[str, Any], arm: str) -> tuple[int, ...]:
    """The seeds of an arm: the grid's, and more where the plan asks for more."""
    grid = plan["grid"]
    return (*grid["seeds"], *grid.get("more_seeds", {}).get(arm, ()))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of the 95 % interval of Student's t; the half width of one value is not known (nan)."""
    if len(values) < 2:
        return values[0], math.nan
    half = T_975[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), half


def tables(plan: Mapping[str, Any], cells: Mapping[str, Mapping[str, Any]]) -> str:
    """Arms against the live teacher and against the full store, then gradients, in Markdown."""
    reference = {name: accuracies(cells, name, seeds_of(plan, name)) for name in ("live", "store")}
    lines = [
        "| arm | lr | seeds | test top-1, % | minus live, points [95 %] | minus store, points [95 %] "
        "| NLL | ECE | train top-1 | s a run |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in plan["arms"]:
        name = arm["name"]
        found = accuracies(cells, name, seeds_of(plan, name))
        if not found:
            lines.append(f"| {name} | - | 0 | not run | | | | | | |")
            continue
        mine = [cells[f"{name}-seed{seed}"] for seed in found]
        mean = statistics.fmean(found.values())
        spread = f" ± {statistics.stdev(found.values()):.2f}" if len(found) > 1 else ""
        lines.append(
            f"| {name} | {mine[0]['settings']['lr']:g} | {len(found)} | {mean:.2f}{spread} "
            f"| {difference(found, reference['live'])} | {difference(found, reference['store'])} "
            f"| {_mean(mine, 'nll'):.3f} | {_mean(mine, 'ece'):.3f} | {100 * _mean(mine, 'train_accuracy'):.1f} "
            f"| {_mean(mine, 'seconds'):.0f} |"
        )
    if "gradients" in cells:
        lines += ["", *gradient_table(cells["gradients"]["figures"])]
    return "\n".join(lines) + "\n"


def difference(mine: Mapping[int, float], other: Mapping[int, float]) -> str:
    """Paired by seed: mean and 95 % interval in points."""
    both = [mine[seed] - other[seed] for seed in mine if seed in other]
    if not both or mine == other:
        return "-"
    mean, half = interval(both)
    return f"{mean:+.2f}" + ("" if math.isnan(half) else f" [{mean - half:+.2f}, {mean + half:+.2f}]")


def gradient_table(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Cosine and relative L2 error by k and T, one pair of columns for each student."""
    students = sorted(figures, key=lambda name: STUDENTS.index(name) if name in STUDENTS else len(STUDENTS))
    head = " | ".join(f"{name}: 1 - cosine | relative L2" for name in students)
    lines = [f"| k, T | {head} |", "|---" * (1 + 2 * len(students)) + "|"]
    for key in sorted(figures[students[0]], key=_by_topk):
        row = [f"{1 - figures[name][key]['cosine']:.1e} | {figures[name][key]['relative_l2']:.1e}" for name in students]
        lines.append(f"| {key} | {' | '.join(row)} |")
    return lines


def _by_topk(key: str) -> tuple[float, ...]:
    """(k, T) of "k=10 T=4"."""
    return tuple(float(part.split("=")[1]) for part in key.split())


def plot(plan: Mapping[str, Any], cells: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Accuracy by number of views, with the other arms beside it; every dot is a student."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "faithfulness"  # the same cells give the same file
    most = plan["views"]["count"]
    by_views = {arm["views"]: arm["name"] for arm in plan["arms"] if arm.get("views")} | {most: "store"}
    others = [arm["name"] for arm in plan["arms"] if arm["name"] not in by_views.values()]
    found = {
        name: list(accuracies(cells, name, seeds_of(plan, name)).values()) for name in (*by_views.values(), *others)
    }
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, width_ratios=(3, 2))
    known = [views for views in sorted(by_views) if found[by_views[views]]]
    left.plot(known, [statistics.fmean(found[by_views[views]]) for views in known], color="tab:blue")
    for views in known:
        left.scatter([views] * len(found[by_views[views]]), found[by_views[views]], color="tab:blue", s=14)
    left.set(xscale="log", xlabel="views in the store (all classes kept)", ylabel="student's test top-1, %")
    left.set_xticks(known, [str(views) for views in known])
    left.minorticks_off()
    shown = [name for name in others if found[name]]
    for place, name in enumerate(shown):
        right.scatter([place] * len(found[name]), found[name], color="tab:orange", s=14)
        right.hlines(statistics.fmean(found[name]), place - 0.25, place + 0.25, color="tab:orange")
    right.set_xticks(range(len(shown)), shown, rotation=30)
    if found["store"]:
        for side in (left, right):
            side.axhline(statistics.fmean(found["store"]), color="tab:blue", linewidth=0.6, linestyle=":")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _mean(cells: Sequence[Mapping[str, Any]], name: str) -> float:
    return statistics.fmean(cell["figures"][name] for cell in cells)
