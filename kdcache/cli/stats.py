"""`kdcache stats`: what a store says about its teacher, its k and its views. Needs neither teacher nor data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from kdcache.cli.options import Numbers, json_option, option, subcommand, workers_options
from kdcache.cli.output import facts, human_bytes, table, write_json, write_result
from kdcache.progress import counted

if TYPE_CHECKING:
    from kdcache.stats import StoreStats
    from kdcache.stats.figures import AtTemperature, MassNeeded, ViewFigures

BARS = "▁▂▃▄▅▆▇█"
LINES = 10  # of a listing; --json gives all


@subcommand("stats")
@click.argument("store", required=False)
@option(
    "--temperature", "temperatures", kind=Numbers(), default="1,2,4,8", metavar="T,..", help="Temperatures, no unit."
)
@option("--contradictions", kind=click.IntRange(min=0), default=20, metavar="ROWS", help="Contradicted rows to name.")
@workers_options()
@json_option
def command(
    *,
    store: str | None,
    temperatures: tuple[float, ...],
    contradictions: int,
    workers: int,
    dask: str,
    as_json: bool,
) -> None:
    """Show what a store says about its teacher, its k and its views.

    Reads every block once and checks it; needs neither the teacher nor the data set. STORE may be left out when there
    is exactly one under kdcache-store/ here. Definitions of every figure: docs/stats.md. The figures are the same
    whoever shares the blocks: this process, --workers or --dask.
    """
    from kdcache.stats import store_stats
    from kdcache.store.find import only_store
    from kdcache.workers.tasks import Workforce

    force = Workforce(workers=workers, dask=dask)
    location = store if store is not None else only_store().location
    found = store_stats(location, temperatures=temperatures, contradictions=contradictions, force=force)
    write_json(found.to_json()) if as_json else write_result(stats_text(found))


def stats_text(stats: StoreStats) -> str:
    """The figures as a person reads them."""
    parts = [_head(stats), _kept(stats)]
    if stats.agreement is not None:
        parts.append(_views(stats.agreement, stats.views))
    parts += [_confusion(stats), _contradictions(stats), _bytes(stats)]
    return "\n\n".join(part for part in parts if part)


def _head(stats: StoreStats) -> str:
    figures = stats.figures
    top5 = "" if figures.top5 is None else f", top-5 {figures.top5:.2%}"
    quality = f"top-1 {figures.top1:.2%}{top5}, NLL {figures.nll:.3f} nats, ECE {figures.ece:.3f}"
    most = max(figures.histogram) or 1
    bars = "".join(BARS[-(-count * (len(BARS) - 1) // most)] for count in figures.histogram)
    masked = "" if stats.counted == stats.rows else f" ({stats.counted:,} that count)"
    label = ", against the first label of each mix" if stats.mixed else ""
    return facts(
        [
            ("store", stats.location),
            (
                "holds",
                f"{stats.rows:,} rows{masked}, {counted(stats.views, 'view')} ({stats.policy}), "
                f"top {stats.topk} of {stats.classes}",
            ),
            ("teacher", f"{stats.teacher} on {stats.dataset} ({stats.split}): {quality}{label}"),
            ("confidence", f"mean {figures.confidence:.1%}; rows from 0 to 100 %: {bars}"),
            ("suggested k", _suggested(stats)),
            ("read in", f"{stats.seconds:.1f} s, {stats.rows_per_second:,.0f} rows/s"),
        ]
    )


def _suggested(stats: StoreStats) -> str:
    judged = [f"{at.temperature:g}" for at in stats.temperatures if 1 <= at.temperature <= 4]
    if not judged:
        return "none: no temperature from 1 to 4 was asked for"
    rule = f"gradient cosine of at least 0.99 at T = {', '.join(judged)}"
    if stats.suggested_topk is None:
        return f"more than the {stats.topk} stored: {rule} is not reached"
    return f"{stats.suggested_topk} ({rule})"


def _kept(stats: StoreStats) -> str:
    k = stats.topk
    header = ["T", "classes in use", "90 % needs", "95 % needs", "99 % needs", f"k={k} keeps", "gradient error"]
    rows = [
        [
            f"{at.temperature:g}" + ("*" if at.modelled else ""),
            f"{at.effective_classes:.1f}",
            *(needed_text(needed) for needed in at.needed),
            f"{at.mass[-1]:.2%}",
            f"{at.gradient_error[-1]:.2g}",
            f"{at.gradient_cosine[-1]:.4f}",
            f"{at.kl_lost[-1]:.2g}",
        ]
        for at in stats.temperatures
    ]
    title = "What k classes keep of the teacher"
    listing = table(rows, header=[*header, "cosine", "KL lost (nats)"], right=range(1, 9))
    return f"{title}\n{listing}{_footnote(stats.temperatures)}"


def needed_text(needed: MassNeeded) -> str:
    """`7`, or beyond the stored k `~61 (20-84)`."""
    if needed.topk is not None:
        return str(needed.topk)
    if needed.at_least == needed.at_most:
        return str(needed.at_least)
    return f"~{needed.estimate} ({needed.at_least}-{needed.at_most})"


def _footnote(temperatures: Sequence[AtTemperature]) -> str:
    lines = []
    if any(needed.topk is None for at in temperatures for needed in at.needed):
        lines.append("~n (a-b): beyond the stored k; n is estimated from the tail's spread, a and b are its bounds")
    if any(at.modelled for at in temperatures):
        lines.append("*: the mass outside the named classes is modelled from the tail's numbers at this T")
    return "".join(f"\n{line}" for line in lines)


def _views(views: ViewFigures, stored: int) -> str:
    errors = ", ".join(f"{count}: {error:.1%}" for count, error in zip(views.views, views.error, strict=True))
    about = "about " if views.modelled else ""
    enough = "enough are stored" if stored >= views.suggested else f"{stored} are stored"
    return "Views\n" + facts(
        [
            (
                "agreement",
                f"two views of a row name the same class in {views.top1_agreement:.2%} of {views.pairs:,} pairs",
            ),
            ("symmetric KL", f"{about}{views.symmetric_kl:.3g} nats at T=1"),
            ("error of mean", f"{about}{errors} (views: distance from the mean of endlessly many)"),
            ("suggested V", f"{about}{views.suggested} (error of at most 10 %); {enough}"),
        ]
    )


def _confusion(stats: StoreStats) -> str:
    if not stats.confused:
        return ""
    rows = [
        [f"{pair.first_name} / {pair.second_name}", f"{pair.forward:.2%}", f"{pair.backward:.2%}"]
        for pair in stats.confused[:LINES]
    ]
    return "Classes taken for one another (mean probability of the second for the first, and back)\n" + table(
        rows, header=["pair", "there", "back"], right=(1, 2)
    )


def _contradictions(stats: StoreStats) -> str:
    if not stats.contradictions:
        return ""
    rows = [
        [
            f"{item.row}",
            item.label_name,
            f"{item.label_probability:.2%}",
            item.predicted_name,
            f"{item.predicted_probability:.1%}",
            f"{item.margin:.2f}",
        ]
        for item in stats.contradictions[:LINES]
    ]
    header = ["row", "label", "its p", "teacher says", "its p", "margin (nats)"]
    return "Rows the teacher contradicts most: candidates for label noise\n" + table(
        rows, header=header, right=(0, 2, 4, 5)
    )


def _bytes(stats: StoreStats) -> str:
    cells = stats.rows * stats.views
    rows = [
        [name, human_bytes(size), f"{size / max(stats.bytes_on_disk, 1):.1%}", f"{size / cells:.2f}"]
        for name, size in sorted(stats.bytes_by_array.items(), key=lambda item: -item[1])
    ]
    per_view = [sum(sizes) for sizes in zip(*stats.bytes_by_view.values(), strict=True)]
    lines = f"{human_bytes(stats.bytes_on_disk)} on disk; all logits in float32 would take "
    lines += human_bytes(stats.full_logits_bytes)
    if len(per_view) > 1:
        least, most = human_bytes(min(per_view)), human_bytes(max(per_view))
        lines += f"; a view takes {least}" + (f" to {most}" if most != least else "")
    return f"Bytes: {lines}\n" + table(rows, header=["array", "bytes", "share", "per row"], right=(1, 2, 3))
