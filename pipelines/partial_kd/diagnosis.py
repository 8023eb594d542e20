"""What a teacher's store can give a student: confidence per example, and relations between classes. No teacher is run.

    python -m pipelines.partial_kd.diagnosis STORE [STORE ...] [--groups FILE] [--results DIR]
    python -m pipelines.partial_kd.diagnosis [--data cifar100] [--scale cpu] [--folder DIR] [--results DIR]

Of any store: kd's gradient rescaling at the start of training (a student that knows nothing, q = 1/K) over the
examples, and that of the other methods; where all classes are kept, also the correlation over examples of the
probabilities of two classes; at several temperatures. FILE names the group of each class, one a line: it says whether a
relation is a real one (CIFAR-100's 20 coarse classes, which no model was told of, are known). Without STORE those of a
finished recipe are read, and with them the rescaling that was measured while its students trained.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kdcache.errors import NotFoundError
from kdcache.html.axes import Axis, colour_of
from kdcache.html.charts import Series, line_chart
from kdcache.html.standalone import Panel, matrix, svg_file
from kdcache.loader.target_store import TargetStore, open_store
from kdcache.parallel import run_recipe
from pipelines.partial_kd.opinion import SHOWN, Diagnosis, diagnose
from pipelines.partial_kd.recipe import MAIN, Recipe, load_recipe

# Coarse class of each of CIFAR-100's 100 fine classes, in the order of their labels (Krizhevsky 2009, coarse_labels).
COARSE = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10,
    12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16,
    12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14,
    13,
)  # fmt: skip


def table(found: Mapping[str, Diagnosis]) -> str:
    """Teachers side by side, in Markdown."""
    lines = [
        "| teacher | T | mean p_y | omega, mean ± sd (5 % to 95 %) | correlation within groups | between "
        "| separation, sd | nearest classes of the same group |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        for t, at in one.at.items():
            s = at.structure
            related = (
                "- | - | - | -"
                if s is None
                else f"{s.within:+.3f} | {s.between:+.3f} | {s.separation:.2f} "
                f"| {s.neighbours:.1%} (chance {s.chance:.1%})"
            )
            lines.append(
                f"| {name} | {t:g} | {at.confidence:.3f} | {at.omega_mean:.2f} ± {at.omega_sd:.2f} "
                f"({at.omega_low:.2f} to {at.omega_high:.2f}) | {related} |"
            )
    lines += [
        "",
        "| teacher | top-1 on the rows | NLL | rows it is 90 % sure of | last layer's cosines: within, between |",
    ]
    lines.append("|---|---|---|---|---|")
    for name, one in found.items():
        w = one.weights
        cosines = "-" if w is None else f"{w.within:+.3f}, {w.between:+.3f} ({w.neighbours:.1%} of nearest)"
        lines.append(f"| {name} | {one.top1:.1%} | {one.nll:.3f} | {one.sure:.1%} | {cosines} |")
    return "\n".join(lines) + "\n"


def methods_table(found: Mapping[str, Diagnosis]) -> str:
    """Rescaling at the start of training by every method, in Markdown; methods without a T stand once."""
    columns = ("mean", "p5", "p25", "p50", "p75", "p95", "confidence_correlation")
    lines = ["| teacher | method | T | omega, mean | 5 % | 25 % | 50 % | 75 % | 95 % | correlation with p_y |"]
    lines.append("|---" * 10 + "|")
    for name, one in found.items():
        for method, at in one.methods.items():
            for t, figures in at.items():
                values = " | ".join(f"{figures[f'omega_{column}']:.2f}" for column in columns)
                lines.append(f"| {name} | {method} | {f'{t:g}' if len(at) > 1 else '-'} | {values} |")
    return "\n".join(lines) + "\n"


def heat_maps(
    found: Mapping[str, Diagnosis], groups: Sequence[int] | None, *, temperatures: Sequence[float]
) -> list[Panel]:
    """Correlation matrices, classes in the order of their groups: a row of panels for every teacher that has them."""
    panels = []
    for name, one in found.items():
        for t in temperatures:
            related, structure = one.at[t].correlations, one.at[t].structure
            if related is None:
                continue
            order = np.arange(len(related)) if groups is None else np.argsort(np.asarray(groups), kind="stable")
            edges, note = [], "classes in the order of their labels"
            if groups is not None and structure is not None:
                edges = [int(i) for i in np.flatnonzero(np.diff(np.asarray(groups)[order])) + 1]
                note = f"mean within groups (lines) {structure.within:+.2f}, between {structure.between:+.2f}"
            title = f"Classes by the teacher {name}, T = {t:g}"
            shown = related[np.ix_(order, order)]
            drawn = matrix(title, shown, low=0, high=0.5, what="correlation", note=note, edges=edges)
            panels.append(Panel(title=title, chart=drawn))
    return panels


def rescaling_plots(found: Mapping[str, Diagnosis], measured: Mapping[str, Sequence[float]]) -> list[Panel]:
    """Spread of omega at the start by temperature and teacher, and median omega over epochs by method."""
    starts = [
        Series(
            name=name,
            points=[(t, at.omega_sd) for t, at in one.at.items()],
            colour=colour_of(i),
            dots=True,
        )
        for i, (name, one) in enumerate(found.items())
    ]
    temperatures = sorted({t for one in found.values() for t in one.at})
    high = max(value for one in starts for _, value in one.points)
    x = Axis(title="temperature", low=temperatures[0], high=temperatures[-1], log=True, ticks=temperatures)
    y = Axis(title="sd of omega over examples, at the start", low=0, high=1.1 * high)
    panels = [_panel("Rescaling from the store, by teacher", x, y, starts)]
    curves = [
        Series(name=name, points=list(enumerate(map(float, values), start=1)), colour=colour_of(i), dots=True)
        for i, (name, values) in enumerate(measured.items())
    ]
    if curves:
        values = [value for one in curves for _, value in one.points]
        x = Axis(title="epoch", low=1, high=max(len(one.points) for one in curves), whole=True)
        y = Axis(title="median omega, measured", low=min(*values, 0.0), high=1.05 * max(values))
        panels.append(_panel("Rescaling while training, by method", x, y, curves))
    return panels


def measured_rescaling(recipe: Recipe) -> dict[str, list[float]]:
    """Median omega by epoch of every finished student of the first seed that reads the main teacher."""
    found = {}
    for arm in recipe.arms:
        path = recipe.folder / "students" / f"{arm.name}-seed{recipe.seeds[0]}" / "metrics.jsonl"
        if arm.teacher == MAIN and path.is_file():
            epochs = [json.loads(line) for line in path.read_text().splitlines()]
            means = [epoch["omega_p50"] for epoch in epochs if epoch.get("omega_p50") is not None]
            if means:
                found[arm.name] = means
    return found


def measured_table(recipe: Recipe) -> str:
    """Rescaling in the last epoch of the students that read the main teacher, means over seeds, in Markdown."""
    names = ("mean", "p5", "p25", "p50", "p75", "p95", "confidence_correlation")
    lines = ["| method | seeds | omega, mean | 5 % | 25 % | 50 % | 75 % | 95 % | correlation with p_y |"]
    lines.append("|---" * 9 + "|")
    for arm in recipe.arms:
        paths = [recipe.folder / "students" / f"{arm.name}-seed{seed}" / "result.json" for seed in arm.seeds]
        found = [json.loads(path.read_text())["rescaling"] for path in paths if path.is_file()]
        if arm.teacher == MAIN and found and found[0]:
            means = [statistics.fmean(one[f"omega_{name}"] for one in found) for name in names]
            lines.append(f"| {arm.name} | {len(found)} | " + " | ".join(f"{value:.2f}" for value in means) + " |")
    return "\n".join(lines) + "\n"


def _panel(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> Panel:
    legend = [(one.name, one.colour) for one in series]
    return Panel(title=title, chart=line_chart(title, x, y, series), legend=legend)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="*", metavar="STORE", help="sealed stores; without any: those of a recipe")
    parser.add_argument("--groups", type=Path, default=None, metavar="FILE", help="the group of each class, one a line")
    parser.add_argument("--data", default="cifar100", choices=("cifar100", "imagenet", "ptb"))
    parser.add_argument("--scale", default="cpu", choices=("smoke", "cpu", "paper"))
    parser.add_argument("--folder", type=Path, default=Path("runs") / "partial_kd")
    parser.add_argument("--results", type=Path, default=None, metavar="DIR", help="write tables and plots here")
    arguments = parser.parse_args()
    run_recipe(lambda: _carry_out(arguments))


def _carry_out(arguments: argparse.Namespace) -> int:
    recipe = None
    if arguments.stores:
        stores = {Path(place).name.removesuffix(".zarr"): open_store(place) for place in arguments.stores}
        stem = "diagnosis"
    else:
        recipe = load_recipe(arguments.data, arguments.scale, data_root=None, folder=arguments.folder)
        places = {name: recipe.store(name) for name in recipe.teachers}
        stores = {name: open_store(place) for name, place in places.items() if place.exists()}
        stem = f"partial_kd-{recipe.name}-diagnosis"
        if not stores:
            raise NotFoundError(
                f"{recipe.folder}: no store of the recipe is there",
                hint=f"python -m pipelines.partial_kd.run --data {arguments.data} --scale {arguments.scale}, or name a "
                "store",
            )
    groups = _groups(arguments.groups, list(stores.values()))
    found = {name: diagnose(store, groups) for name, store in stores.items()}
    text = table(found) + "\n" + methods_table(found) + ("" if recipe is None else "\n" + measured_table(recipe))
    print(text)
    if arguments.results is not None:
        arguments.results.mkdir(parents=True, exist_ok=True)
        name = arguments.results / stem
        name.with_suffix(".table.md").write_text(text)
        maps = heat_maps(found, groups, temperatures=SHOWN)
        if maps:
            name.with_suffix(".classes.svg").write_text(svg_file(maps, columns=2))
        plots = rescaling_plots(found, {} if recipe is None else measured_rescaling(recipe))
        name.with_suffix(".rescaling.svg").write_text(svg_file(plots, columns=2))
    return 0


def _groups(file: Path | None, stores: Sequence[TargetStore]) -> Sequence[int] | None:
    """Groups of the classes as numbers: from a file, or CIFAR-100's."""
    if file is not None:
        if not file.is_file():
            raise NotFoundError(f"{file}: no such file", hint="the group of each class, one a line, in label order")
        names = file.read_text(encoding="utf-8").split("\n")
        known: dict[str, int] = {}
        return [known.setdefault(name.strip(), len(known)) for name in names if name.strip()]
    cards = {store.manifest.dataset.card for store in stores}
    return COARSE if cards == {"cifar100"} else None


if __name__ == "__main__":
    main()
