"""The page about a store: its statistics as plots a person reads. Computes nothing that `stats` has not found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kdcache.html.axes import Axis, colour_of, ordered_colour, percent
from kdcache.html.bars import Bar, bar_chart
from kdcache.html.charts import Series, histogram, legend, line_chart, numbers_of, reliability
from kdcache.html.heatmap import heat_map
from kdcache.html.markup import Html, element, join
from kdcache.html.page import Column, Section, command, figure, grid, page, table, tiles
from kdcache.metrics import Calibration
from kdcache.pages.wording import bytes_text, place_name, shared_facts, shell_word
from kdcache.stats.clusters import class_distances, cluster
from kdcache.stats.figures import Contradiction, MassNeeded, StoreStats

GROUP_SIZE = 5  # classes in a cluster, on average: 20 clusters of CIFAR-100, as many as its own coarse classes
GROUPS_SHOWN = 40
LARGEST_HEAT = 4096


def store_page(stats: StoreStats, *, thumbnails: Mapping[int, Html] | None = None, remark: str = "") -> str:
    """The page as one HTML document.

    Args:
        stats: of the store.
        thumbnails: pictures of contradicted rows by row number.
        remark: why there are no pictures, for example.
    """
    name = place_name(stats.location)
    sections = [_teacher(stats), _kept(stats)]
    if stats.agreement is not None:
        sections.append(_views(stats))
    if stats.class_means is not None and 3 <= stats.classes <= LARGEST_HEAT:
        sections.append(_classes(stats))
    if stats.contradictions:
        sections.append(_contradictions(stats.contradictions, thumbnails or {}, remark))
    sections += [_size(stats), _use(stats, name)]
    subtitle = join([f"{stats.teacher} on {stats.dataset}, {stats.split} · ", element("code", {}, name)])
    return page(f"Store: {stats.teacher} on {stats.dataset}", sections, subtitle=subtitle, top=_tiles(stats))


def _tiles(stats: StoreStats) -> Html:
    figures, ratio = stats.figures, stats.full_logits_bytes / max(stats.bytes_on_disk, 1)
    times = f"{ratio:.{0 if ratio >= 10 else 1}f}"
    top5 = "" if figures.top5 is None else f"top-5 {figures.top5:.1%}"
    suggested = "more than stored" if stats.suggested_topk is None else str(stats.suggested_topk)
    items = [
        ("Rows", f"{stats.rows:,}", _views_text(stats)),
        ("Teacher top-1", f"{figures.top1:.1%}", top5),
        ("NLL", f"{figures.nll:.3f}", "nats"),
        ("Calibration error", f"{figures.ece:.3f}", "ECE, 15 bins"),
        ("Classes kept", f"{stats.topk} of {stats.classes:,}", f"suggested k: {suggested}"),
        ("Size", bytes_text(stats.bytes_on_disk), f"all logits in float32: {times} times as much"),
    ]
    if stats.agreement is not None:
        items.append(
            ("Views agree", f"{stats.agreement.top1_agreement:.1%}", f"suggested V: {stats.agreement.suggested}")
        )
    return tiles(items)


def _views_text(stats: StoreStats) -> str:
    masked = "" if stats.counted == stats.rows else f"{stats.counted:,} count; "
    policy = "as they are" if stats.policy == "none" else stats.policy
    return f"{masked}{stats.views} view{'s' * (stats.views != 1)} each, {policy}"


def _teacher(stats: StoreStats) -> Section:
    figures = stats.figures
    bins = len(figures.histogram)
    edges = [i / bins for i in range(bins + 1)]
    total = sum(figures.histogram) or 1
    tips = [
        f"sure {percent(low)} to {percent(high)}\n{count:,} rows ({count / total:.1%})"
        for low, high, count in zip(edges, edges[1:], figures.histogram, strict=False)
    ]
    shares = [count / total for count in figures.histogram]
    confidence = figure(
        "How sure the teacher is",
        histogram(
            "Rows by the probability of the most probable class",
            Axis(title="probability of the most probable class", low=0, high=1, label=percent),
            Axis(title="share of rows", low=0, high=max(shares) * 1.05, label=percent),
            edges,
            shares,
            tips,
        ),
        caption=f"Mean confidence {figures.confidence:.1%}, at T = 1.",
        numbers=table(
            [Column(title="from"), Column(title="to"), Column(title="rows", numeric=True)],
            [
                [percent(low), percent(high), f"{count:,}"]
                for low, high, count in zip(edges, edges[1:], figures.histogram, strict=False)
            ],
            caption="Rows by confidence",
        ),
    )
    honest = "more" if figures.confidence > figures.top1 else "less"
    calibration = figure(
        "Is it as right as it is sure?",
        reliability("Accuracy by confidence", [("teacher", colour_of(0), calibration_bins(figures.calibration))]),
        caption=f"On the dashed line it is. This teacher is {honest} sure ({figures.confidence:.1%} in the mean) than"
        f" right ({figures.top1:.1%}); larger dots hold more rows.",
        numbers=calibration_table(figures.calibration),
    )
    lead = "Against the labels the data set has"
    lead += "; of a mixed view only the first label counts." if stats.mixed else "."
    return Section(title="Teacher", anchor="teacher", lead=lead, body=grid(confidence, calibration))


def calibration_bins(calibration: Calibration) -> list[tuple[float, float, int]]:
    """(confidence, accuracy, rows) of each bin; an empty bin is (0, 0, 0)."""
    bins = zip(calibration.confidence, calibration.accuracy, calibration.count, strict=True)
    return [(sure or 0.0, right or 0.0, rows) for sure, right, rows in bins]


def calibration_table(calibration: Calibration) -> Html:
    """The bins as numbers."""
    columns = [Column(title=name, numeric=True) for name in ("confidence", "accuracy", "rows")]
    rows = [[f"{a:.1%}", f"{b:.1%}", f"{n:,}"] for a, b, n in calibration_bins(calibration) if n]
    return table(columns, rows, caption="Accuracy by confidence")


def _kept(stats: StoreStats) -> Section:
    count = len(stats.temperatures)
    x = Axis(title="classes kept, k", low=1, high=stats.classes, log=stats.classes > 12, whole=True)
    stored = Axis(title="classes kept, k", low=1, high=max(stats.topk, 2), log=stats.topk > 12, whole=True)
    mass, cosine = [], []
    for number, at in enumerate(stats.temperatures):
        colour, name = ordered_colour(number, count), f"T = {at.temperature:g}"
        band = [(stats.topk, at.mass[-1], at.mass[-1])] if at.beyond else []
        band += zip(at.beyond, at.mass_low, at.mass_high, strict=True)
        guess = list(zip(at.beyond, at.mass_estimate, strict=True))
        mass.append(
            Series(name=name, colour=colour, points=list(zip(at.topk, at.mass, strict=True)), guess=guess, band=band)
        )
        points = list(zip(at.topk, at.gradient_error, strict=True))
        cosine.append(Series(name=name, colour=colour, points=points, dots=len(points) <= 12))
    top = max(max(at.gradient_error) for at in stats.temperatures)
    beyond = (
        f"Dotted beyond the {stats.topk} stored: estimated from the tail's numbers, the band is what they allow. "
        if stats.topk < stats.classes
        else ""
    )
    charts = grid(
        figure(
            "How much of the teacher k classes keep",
            line_chart("Mass by k", x, Axis(title="mass kept", low=0, high=1, label=percent), mass, show=_fine),
            caption=f"{beyond}Mean over rows of the probability of the k most probable classes.",
            numbers=numbers_of("k", mass, caption="Mass kept by k", show=_fine),
        ),
        figure(
            "How far the gradient is from that of all classes",
            line_chart(
                "Gradient error by k",
                stored,
                Axis(title="relative L2 error", low=0, high=max(top * 1.05, 1e-3), label=percent),
                cosine,
                show=_fine,
            ),
            caption="Logit gradient of a student that knows nothing yet, an even tail against the teacher's own; a"
            " trained student's error is larger.",
            numbers=numbers_of("k", cosine, caption="Relative L2 error of the gradient by k", show=_fine),
        ),
        figure("k to choose", _needed_table(stats), wide=True),
    )
    if stats.suggested_topk is None:
        lead = f"The {stats.topk} classes stored are not enough for a gradient cosine of 0.99 at every T from 1 to 4."
    else:
        lead = f"k = {stats.suggested_topk} is enough for a gradient cosine of 0.99 at every T from 1 to 4 shown here."
    return Section(title="What k keeps", anchor="topk", lead=lead, body=charts)


def _fine(value: float) -> str:
    return f"{100 * value:.3g}%"


def _needed_table(stats: StoreStats) -> Html:
    columns = [
        Column(title="T", numeric=True),
        Column(title="classes in use", numeric=True),
        *(Column(title=f"{needed.share:.0%} needs k", numeric=True) for needed in stats.temperatures[0].needed),
        Column(title=f"k = {stats.topk} keeps", numeric=True),
        Column(title="gradient error", numeric=True),
        Column(title="cosine", numeric=True),
        Column(title="KL lost", numeric=True, unit="nats"),
    ]
    rows = [
        [
            f"{at.temperature:g}",
            f"{at.effective_classes:.1f}",
            *(_needed(needed) for needed in at.needed),
            f"{at.mass[-1]:.2%}",
            _fine(at.gradient_error[-1]),
            f"{at.gradient_cosine[-1]:.4f}",
            f"{at.kl_lost[-1]:.2g}",
        ]
        for at in stats.temperatures
    ]
    caption = "Classes in use: exp(entropy)."
    if any(at.modelled for at in stats.temperatures):
        modelled = ", ".join(f"{at.temperature:g}" for at in stats.temperatures if at.modelled)
        caption += f" At T = {modelled} the tail's mass is modelled from its numbers."
    return table(columns, rows, caption=caption)


def _needed(needed: MassNeeded) -> str:
    if needed.topk is not None:
        return str(needed.topk)
    if needed.at_least == needed.at_most:
        return str(needed.at_least)
    return f"≈{needed.estimate} ({needed.at_least}–{needed.at_most})"


def _views(stats: StoreStats) -> Section:
    views = stats.agreement
    assert views is not None
    line = Series(name="error", colour=colour_of(0), points=list(zip(views.views, views.error, strict=True)), dots=True)
    limit = Series(name="10%", colour=colour_of(7), points=[(views.views[0], 0.1), (views.views[-1], 0.1)])
    about = "about " if views.modelled else ""
    chart = figure(
        "How many views make a stable opinion",
        line_chart(
            "Error of the mean opinion by views",
            Axis(title="views V", low=1, high=views.views[-1], log=True, ticks=views.views),
            Axis(title="relative L2 error", low=0, high=max(max(views.error) * 1.05, 0.11), label=percent),
            [line, limit],
            show=_fine,
        ),
        caption=f"Distance of the mean over V views from that over endlessly many. At most 10% from V = {about}"
        f"{views.suggested} on; {stats.views} are stored. It says nothing about accuracy.",
        numbers=numbers_of("V", [line], caption="Error of the mean opinion by views", show=_fine),
    )
    shown = shared_facts(
        [
            ("Same class named", f"{views.top1_agreement:.2%} of {views.pairs:,} pairs of views"),
            ("Symmetric KL", f"{about}{views.symmetric_kl:.3g} nats at T = 1"),
            ("Spread of a view", f"{about}{views.spread:.3g} of the squared length of the mean opinion"),
        ]
    )
    lead = "Two augmented views of a row: does the teacher say the same?"
    return Section(title="Views", anchor="views", lead=lead, body=grid(chart, element("div", {"class": "card"}, shown)))


def _classes(stats: StoreStats) -> Section:
    means = stats.class_means
    assert means is not None
    names = [str(number) for number in range(stats.classes)]
    for item in stats.by_class:
        names[item.label] = item.name
    seen = np.array([item.label for item in stats.by_class], dtype=np.int64)
    tree = cluster(class_distances(means[np.ix_(seen, seen)]))
    order = seen[tree.order]
    heat = figure(
        "Which classes the teacher finds alike",
        heat_map(
            means[np.ix_(order, order)],
            [names[label] for label in order],
            what="Mean probability the teacher gives to one class on rows of another",
            rows="label",
            columns="class the teacher gives probability to",
        ),
        caption="Mean probability at T = 1, logarithmic; classes that are taken for one another stand side by side"
        " (average-linkage clusters). Point at a cell, or use the arrow keys.",
    )
    groups = [group for group in tree.groups(max(2, -(-len(seen) // GROUP_SIZE))) if len(group) > 1]
    chips = [element("li", {}, ", ".join(names[seen[leaf]] for leaf in group[:24])) for group in groups[:GROUPS_SHOWN]]
    pairs = [
        Bar(
            name=f"{pair.first_name} · {pair.second_name}",
            parts=[
                (pair.forward, colour_of(0), f"{pair.second_name} on rows of {pair.first_name}: {pair.forward:.2%}"),
                (pair.backward, colour_of(1), f"{pair.first_name} on rows of {pair.second_name}: {pair.backward:.2%}"),
            ],
            shown=f"{pair.forward + pair.backward:.1%}",
        )
        for pair in stats.confused[:14]
    ]
    there_and_back = legend([("second on rows of the first", colour_of(0)), ("first on the second", colour_of(1))])
    confusion = figure(
        "Most confused pairs",
        join([there_and_back, bar_chart("Mean probability two classes give one another, both directions", pairs)]),
        caption="Mean probability the teacher gives to the other class, at T = 1.",
        numbers=table(
            [Column(title="pair"), Column(title="there", numeric=True), Column(title="back", numeric=True)],
            [[f"{p.first_name} · {p.second_name}", f"{p.forward:.2%}", f"{p.backward:.2%}"] for p in stats.confused],
            caption="Mean probability of one class on rows of the other",
        ),
    )
    clusters = element(
        "div", {"class": "card"}, element("h3", {}, "Clusters"), element("ul", {"class": "chips"}, chips)
    )
    rows = [[item.name, f"{item.rows:,}", f"{item.top1:.1%}", f"{item.probability:.1%}"] for item in stats.by_class]
    columns = [
        Column(title="label"),
        *(Column(title=t, numeric=True) for t in ("rows", "top-1", "mean p of the label")),
    ]
    by_class = table(columns, rows, caption="Teacher by class, worst first; rows of all views", search=len(rows) > 12)
    right = element("div", {"class": "stack"}, confusion, clusters if chips else None)
    body = join([grid(heat, right), element("div", {"class": "stack"}, element("p", {}), by_class)])
    return Section(title="Classes", anchor="classes", body=body)


def _contradictions(items: Sequence[Contradiction], thumbnails: Mapping[int, Html], remark: str) -> Section:
    lead = (
        "Rows on which the teacher is sure of another class: wrong labels, or hard examples. Look before you believe."
    )
    columns = [
        Column(title="row", numeric=True),
        Column(title="label"),
        Column(title="teacher says"),
        Column(title="p of label", numeric=True),
        Column(title="p of that", numeric=True),
        Column(title="margin", numeric=True, unit="nats"),
    ]
    rows = [
        [
            str(item.row),
            item.label_name,
            item.predicted_name,
            f"{item.label_probability:.2g}",
            f"{item.predicted_probability:.1%}",
            f"{item.margin:.2f}",
        ]
        for item in items
    ]
    listing = table(columns, rows, caption="Most contradicted rows, mean over views", search=len(rows) > 12)
    cards = [_card(item, thumbnails[item.row]) for item in items if item.row in thumbnails]
    shown = element("ul", {"class": "thumbs"}, cards) if cards else None
    note = element("p", {"class": "note"}, remark) if remark else None
    body = element("div", {"class": "stack"}, note, shown, _folded(listing) if cards else listing)
    return Section(title="Contradicted labels", anchor="contradicted", lead=lead, body=body)


def _card(item: Contradiction, picture: Html) -> Html:
    return element(
        "li",
        {"class": "card"},
        picture,
        element("p", {}, "label ", element("b", {}, item.label_name)),
        element("p", {}, "teacher ", element("b", {}, item.predicted_name), f" {item.predicted_probability:.0%}"),
        element("p", {"class": "pill"}, f"row {item.row} · {item.margin:.1f} nats"),
    )


def _folded(listing: Html) -> Html:
    return element("details", {"class": "numbers"}, element("summary", {}, "Numbers"), listing)


def _size(stats: StoreStats) -> Section:
    cells = stats.rows * stats.views
    arrays = sorted(stats.bytes_by_array.items(), key=lambda item: -item[1])
    bars = [
        Bar(
            name=name,
            parts=[(size, colour_of(0), f"{name}: {size:,} bytes, {size / cells:.2f} a row and view")],
            shown=f"{bytes_text(size)}, {size / max(stats.bytes_on_disk, 1):.0%}",
        )
        for name, size in arrays
    ]
    by_view = list(stats.bytes_by_view.items())
    numbers = table(
        [Column(title="array"), Column(title="bytes", numeric=True), Column(title="per row and view", numeric=True)],
        [[name, f"{size:,}", f"{size / cells:.2f}"] for name, size in arrays],
        caption="Bytes on disk by array",
    )
    charts = [figure("By array", bar_chart("Bytes on disk by array", bars), numbers=numbers)]
    if stats.views > 1 and by_view:
        columns = [Column(title="view", numeric=True), *(Column(title=name, numeric=True) for name, _ in by_view)]
        rows = [
            [str(view), *(f"{sizes[view]:,}" for _, sizes in by_view), f"{sum(s[view] for _, s in by_view):,}"]
            for view in range(stats.views)
        ]
        columns.append(Column(title="together", numeric=True))
        charts.append(figure("By view", table(columns, rows, caption="Bytes on disk of each view"), wide=True))
    lead = f"{bytes_text(stats.bytes_on_disk)} on disk, {stats.bytes_on_disk / cells:.1f} bytes a row and view;"
    lead += f" all logits in float32 would take {bytes_text(stats.full_logits_bytes)}."
    return Section(title="Bytes", anchor="bytes", lead=lead, body=grid(charts))


def _use(stats: StoreStats, name: str) -> Section:
    word = shell_word(name)
    lines = [
        command(f"kdcache verify {word}"),
        command(f"kdcache distill --store {word} --method kd --topk {stats.suggested_topk or stats.topk}"),
    ]
    facts = shared_facts(
        [
            ("Store key", element("code", {}, stats.store_key)),
            ("Root digest", element("code", {}, stats.root_digest)),
            ("Precision", stats.precision),
            ("Statistics", f"one pass, {stats.rows_per_second:,.0f} rows/s"),
        ]
    )
    body = element("div", {"class": "stack"}, element("div", {"class": "card"}, facts), element("div", {}, lines))
    return Section(title="Use it", anchor="use", body=body)
