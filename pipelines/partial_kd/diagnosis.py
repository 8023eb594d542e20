"""What a teacher's store can give a student: confidence per example, and relations between classes. No teacher is run.

    python -m pipelines.partial_kd.diagnosis [--data cifar100] [--scale cpu] [--folder DIR] [--results DIR]

For every teacher of a recipe, from its store alone: gradient rescaling at the start of training (a student that knows
nothing, q = 1/K) over the examples, and the correlation over examples of the probabilities of two classes, at several
temperatures. CIFAR-100's 20 coarse classes, which no model was told of, say whether a relation is a real one. With them
go, from the finished students, the rescaling that was measured while they trained.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from kdcache.errors import IncompatibleError
from kdcache.html.axes import Axis, colour_of
from kdcache.html.charts import Series, line_chart
from kdcache.html.standalone import Panel, matrix, svg_file
from kdcache.loader.target_store import TargetStore, open_store
from kdcache.targets.rescaling import gradient_rescaling
from pipelines.partial_kd.recipe import MAIN, Recipe, load_recipe

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
ALPHA = 0.9
# Coarse class of each of CIFAR-100's 100 fine classes, in the order of their labels (Krizhevsky 2009, coarse_labels).
COARSE = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10,
    12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16,
    12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14,
    13,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Structure:
    """How much of a known grouping of the classes is in a matrix of their relations.

    Attributes:
        within: mean relation of two classes of one group; between: of two groups.
        separation: standard deviations (of all pairs) between these two means.
        neighbours: share of each class's nearest classes (as many as its group has others) that are of its group.
        chance: what `neighbours` would be for random relations.
    """

    within: float
    between: float
    separation: float
    neighbours: float
    chance: float


@dataclass(frozen=True, kw_only=True)
class AtTemperature:
    """A teacher's opinion of its rows at one temperature.

    Attributes:
        confidence: mean p_y^T.
        omega_mean, omega_sd: gradient rescaling over rows, for a student that knows nothing, at alpha = 0.9.
        omega_low, omega_high: its 5th and 95th percentile.
        correlations: (K, K) Pearson correlation over rows of the probabilities of two classes.
        structure: of these correlations.
    """

    confidence: float
    omega_mean: float
    omega_sd: float
    omega_low: float
    omega_high: float
    correlations: NDArray[np.float64]
    structure: Structure


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """One teacher.

    Attributes:
        top1, nll: on the store's rows.
        sure: share of rows whose best class has more than 0.9.
        at: by temperature.
        weights: structure of the cosines of the last layer's rows; None where the store keeps no weights.
    """

    top1: float
    nll: float
    sure: float
    at: Mapping[float, AtTemperature]
    weights: Structure | None


def diagnose(store: TargetStore, groups: Sequence[int], *, temperatures: Sequence[float] = TEMPERATURES) -> Diagnosis:
    """Everything above, of one store.

    Args:
        store: holds all K classes of every row.
        groups: (K,) group of every class.
        temperatures: T.

    Raises:
        IncompatibleError: the store keeps fewer than K classes.
    """
    log_prob, labels = dense_log_probs(store)
    best, index = log_prob.max(dim=1)
    weight = store.class_weight
    unit = None if weight is None else functional.normalize(weight.double(), dim=1)
    return Diagnosis(
        top1=float((index == labels).double().mean()),
        nll=-float(log_prob.gather(1, labels[:, None]).double().mean()),
        sure=float((best.exp() > 0.9).double().mean()),
        at={t: _at(store, log_prob, labels, groups, t) for t in temperatures},
        weights=None if unit is None else structure_of((unit @ unit.T).numpy(), groups),
    )


def dense_log_probs(store: TargetStore) -> tuple[Tensor, Tensor]:
    """Log p (V N, K) float32 and labels (V N,) of all views of a store of all classes.

    Raises:
        IncompatibleError: it keeps fewer than K classes.
    """
    if store.topk < store.num_classes:
        raise IncompatibleError(
            f"{store.location}: keeps {store.topk} of {store.num_classes} classes; the diagnosis needs all of them",
            hint="kdcache dump-teacher --topk all",
        )
    log_probs, labels = [], []
    for view in range(store.num_views):
        for targets in store.batches(view=view):
            log_probs.append(torch.empty(len(targets), store.num_classes).scatter_(1, targets.index, targets.log_prob))
            labels.append(targets.label)
    return torch.cat(log_probs), torch.cat(labels)


def correlations(prob: Tensor) -> NDArray[np.float64]:
    """(K, K) Pearson correlation of the columns of (N, K), float64; 0 where a column is constant."""
    centred = prob.double() - prob.double().mean(dim=0)
    scale = centred.norm(dim=0).clamp(min=1e-300)
    found: NDArray[np.float64] = ((centred.T @ centred) / scale[:, None] / scale).numpy()
    return found


def structure_of(relations: NDArray[np.floating], groups: Sequence[int]) -> Structure:
    """How much of a grouping is in (K, K) relations; groups of one class are left out."""
    group = np.asarray(groups)
    other = ~np.eye(len(group), dtype=bool)
    same = (group[:, None] == group) & other
    pairs = relations[other]
    within, between = float(relations[same].mean()), float(relations[other & ~same].mean())
    order = np.argsort(-np.where(other, relations, -np.inf), axis=1, kind="stable")
    found, expected = [], []
    for i, companions in enumerate(same.sum(axis=1)):
        if companions:
            found.append(float(same[i, order[i, :companions]].mean()))
            expected.append(companions / (len(group) - 1))
    return Structure(
        within=within,
        between=between,
        separation=(within - between) / max(float(pairs.std()), 1e-300),
        neighbours=float(np.mean(found)),
        chance=float(np.mean(expected)),
    )


def table(found: Mapping[str, Diagnosis]) -> str:
    """Teachers side by side, in Markdown."""
    lines = [
        "| teacher | T | mean p_y | omega, mean ± sd (5 % to 95 %) | correlation within coarse classes | between "
        "| separation, sd | nearest 4 of the same coarse class |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        for t, at in one.at.items():
            s = at.structure
            lines.append(
                f"| {name} | {t:g} | {at.confidence:.3f} | {at.omega_mean:.2f} ± {at.omega_sd:.2f} "
                f"({at.omega_low:.2f} to {at.omega_high:.2f}) | {s.within:+.3f} | {s.between:+.3f} "
                f"| {s.separation:.2f} | {s.neighbours:.1%} (chance {s.chance:.1%}) |"
            )
    lines += [
        "",
        "| teacher | top-1 on the rows | NLL | rows it is 90 % sure of | last layer's cosines: within, between |",
    ]
    lines.append("|---|---|---|---|---|")
    for name, one in found.items():
        w = one.weights
        cosines = "-" if w is None else f"{w.within:+.3f}, {w.between:+.3f} ({w.neighbours:.1%} of nearest 4)"
        lines.append(f"| {name} | {one.top1:.1%} | {one.nll:.3f} | {one.sure:.1%} | {cosines} |")
    return "\n".join(lines) + "\n"


def heat_maps(found: Mapping[str, Diagnosis], groups: Sequence[int], *, temperatures: Sequence[float]) -> list[Panel]:
    """Correlation matrices, classes in the order of their groups: a row of panels for every teacher."""
    order = np.argsort(np.asarray(groups), kind="stable")
    edges = [int(i) for i in np.flatnonzero(np.diff(np.asarray(groups)[order])) + 1]
    panels = []
    for name, one in found.items():
        for t in temperatures:
            at = one.at[t]
            shown = at.correlations[np.ix_(order, order)]
            note = f"mean within groups (lines) {at.structure.within:+.2f}, between {at.structure.between:+.2f}"
            title = f"Classes by the teacher {name}, T = {t:g}"
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


def _at(store: TargetStore, log_prob: Tensor, labels: Tensor, groups: Sequence[int], t: float) -> AtTemperature:
    prob = torch.softmax(log_prob / t, dim=1)
    omegas = []
    for view in range(store.num_views):
        for targets in store.batches(view=view):
            blank = torch.zeros(len(targets), store.num_classes)
            omegas.append(gradient_rescaling(blank, targets, temperature=t, alpha=ALPHA))
    omega = torch.cat(omegas).double()
    low, high = torch.quantile(omega, torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    related = correlations(prob)
    return AtTemperature(
        confidence=float(prob.gather(1, labels[:, None]).double().mean()),
        omega_mean=float(omega.mean()),
        omega_sd=float(omega.std()),
        omega_low=low,
        omega_high=high,
        correlations=related,
        structure=structure_of(related, groups),
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar100", choices=("cifar100",), help="whose coarse classes are known")
    parser.add_argument("--scale", default="cpu", choices=("smoke", "cpu", "paper"))
    parser.add_argument("--folder", type=Path, default=Path("runs") / "partial_kd")
    parser.add_argument("--results", type=Path, default=None, metavar="DIR", help="write table and plots here")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.data, arguments.scale, data_root=None, folder=arguments.folder)
    stores = {name: recipe.store(name) for name in recipe.teachers if recipe.store(name).exists()}
    found = {name: diagnose(open_store(place), COARSE) for name, place in stores.items()}
    text = table(found) + "\n" + measured_table(recipe)
    print(text)
    if arguments.results is not None:
        arguments.results.mkdir(parents=True, exist_ok=True)
        name = arguments.results / f"partial_kd-{recipe.name}-diagnosis"
        name.with_suffix(".table.md").write_text(text)
        maps = heat_maps(found, COARSE, temperatures=(1.0, 4.0))
        name.with_suffix(".classes.svg").write_text(svg_file(maps, columns=2))
        plots = rescaling_plots(found, measured_rescaling(recipe))
        name.with_suffix(".rescaling.svg").write_text(svg_file(plots, columns=2))


if __name__ == "__main__":
    main()
