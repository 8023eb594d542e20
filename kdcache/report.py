"""`report`: finished runs side by side, grouped by method, seeds paired against cross-entropy. Reads files only."""

from __future__ import annotations

import math
import shlex
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.errors import ConfigError, NotFoundError
from kdcache.training.runs import read_document

BASELINE = "ce"
# Settings that must agree for two runs to be compared fairly; the others (method, T, k, seed) are what is compared.
_SHARED = ("student", "dataset", "split", "eval_split", "epochs", "batch_size", "content_digest")
# Two-sided 95 % quantile of Student's t for 1, 2, ... degrees of freedom; beyond 30 the normal's is within 0.5 %
# after the 1/df correction used below.
TOO_LONG = 1e5  # numbers from here on are written with an exponent
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ReportRow:
    """All runs of one method with one setting.

    Attributes:
        label: method, with k, T, alpha and options where the compared runs differ in them.
        runs: how many.
        accuracy, accuracy_sd: mean and standard deviation of the last epoch's top-1 over runs; sd is None for one run.
        gain: mean of (accuracy - ce's accuracy with the same seed); None without matching seeds.
        gain_low, gain_high: 95 % t-interval of the gain; None below two pairs.
        pairs: how many seeds match.
        nll, ece: means; nll_sd, ece_sd their standard deviations over runs, None for one run.
        agreement: mean over the runs that measured it, on the evaluation rows (--eval-store); None where none did.
        train_agreement: the same on the training rows while training; None for methods without a teacher.
        seconds: mean time of training steps.
        perplexity, perplexity_sd: of token rows: mean and standard deviation over runs; None elsewhere.
    """

    label: str
    method: str
    runs: int
    accuracy: float
    accuracy_sd: float | None
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    pairs: int
    nll: float
    nll_sd: float | None
    ece: float
    ece_sd: float | None
    agreement: float | None
    train_agreement: float | None
    seconds: float
    perplexity: float | None = None
    perplexity_sd: float | None = None


def find_runs(places: Sequence[str | Path]) -> list[Path]:
    """Finished runs among folders: each place is a run folder, or a folder of run folders.

    Raises:
        NotFoundError: a place holds no finished run.
    """
    found: list[Path] = []
    for place in map(Path, places):
        inside = [place] if (place / "result.json").is_file() else sorted(p.parent for p in place.glob("*/result.json"))
        if not inside:
            raise NotFoundError(
                f"{place}: no finished run here (no result.json)", hint="kdcache distill --resume finishes one"
            )
        found += [path for path in inside if path not in found]
    return found


def compare_runs(places: Sequence[str | Path]) -> list[ReportRow]:
    """Group finished runs by method and settings and pair their seeds with cross-entropy's; errors as `group_runs`."""
    groups = {label: [run for _, run in members] for label, members in group_runs(places).items()}
    baseline = _baseline(groups)
    rows = [_row(label, members, baseline) for label, members in groups.items()]
    return sorted(rows, key=lambda row: (row.method != BASELINE, row.accuracy))


def group_runs(places: Sequence[str | Path]) -> dict[str, list[tuple[Path, Mapping[str, Any]]]]:
    """(folder, result.json) of finished students by `ReportRow.label`.

    Raises:
        NotFoundError: a place holds no finished run.
        ConfigError: the runs differ in data, student or budget: their comparison would say nothing about methods.
    """
    found = [(folder, read_document(folder / "result.json")) for folder in find_runs(places)]
    found = [(folder, run) for folder, run in found if "student" in run]
    if not found:
        raise NotFoundError("no finished student among these runs", hint="kdcache distill makes one")
    runs = [run for _, run in found]
    for name in _SHARED:
        values = sorted({str(run.get(name)) for run in runs})
        if len(values) > 1:
            together = [shlex.quote(str(folder)) for folder, run in found if str(run.get(name)) == values[0]]
            raise ConfigError(
                f"the runs differ in {name}: {', '.join(values)}; expected them to differ in method, k, T, seed",
                hint=f"name the runs that belong together: kdcache report {' '.join(together)}",
            )
    groups: dict[str, list[tuple[Path, Mapping[str, Any]]]] = {}
    for label, member in zip(_labels(runs), found, strict=True):
        groups.setdefault(label, []).append(member)
    return groups


def text_table(rows: Sequence[ReportRow]) -> str:
    """The rows as aligned text, accuracies in percent."""
    words = any(row.perplexity is not None for row in rows)
    header = (
        "method",
        "n",
        *(["perplexity"] if words else []),
        "accuracy %",
        "sd",
        "gain over ce [95 %]",
        "NLL",
        "ECE",
        "agreement",
        "on train",
        "seconds",
    )
    body = [
        (
            row.label,
            str(row.runs),
            *([_with_sd(row.perplexity or math.nan, row.perplexity_sd, digits=1)] if words else []),
            f"{100 * row.accuracy:.2f}",
            "-" if row.accuracy_sd is None else f"{100 * row.accuracy_sd:.2f}",
            _gain_text(row),
            _with_sd(row.nll, row.nll_sd),
            _with_sd(row.ece, row.ece_sd),
            "-" if row.agreement is None else f"{100 * row.agreement:.1f}",
            "-" if row.train_agreement is None else f"{100 * row.train_agreement:.1f}",
            f"{row.seconds:.1f}",
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in (header, *body)) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (header, *body)]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % confidence interval of the mean by Student's t; None below two values."""
    if len(values) < 2:
        return None
    freedom = len(values) - 1
    quantile = _T95[freedom - 1] if freedom <= len(_T95) else 1.960 + 2.4 / freedom
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half


def _labels(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The method, and those settings in which runs of the same method differ; another store than most runs'."""
    read = Counter(run.get("store_key") for run in runs if _reads_store(run))
    usual = read.most_common(1)[0][0] if read else None
    labels = []
    for run in runs:
        same = [other for other in runs if other["method"] == run["method"]]
        parts = [str(run["method"])]
        for name, short in (("topk", "k"), ("temperature", "T"), ("alpha", "alpha"), ("lr", "lr")):
            if len({other.get(name) for other in same}) > 1:
                value = run.get(name)
                parts.append(f"{short}={value:g}" if isinstance(value, int | float) else f"{short}={value}")
        for name, value in sorted(run.get("options", {}).items()):
            if len({str(other.get("options", {}).get(name)) for other in same}) > 1:
                parts.append(f"{name}={value}")
        if _reads_store(run) and run.get("store_key") != usual:
            parts.append(f"store={str(run.get('store_key'))[:8]}")
        labels.append(" ".join(parts))
    return labels


def _reads_store(run: Mapping[str, Any]) -> bool:
    """Whether the run's targets came from its store: ce and ls have no k."""
    return run["method"] != BASELINE and ("topk" not in run or run["topk"] is not None)


def _baseline(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[int, float]:
    """Cross-entropy's accuracy by seed; of several settings (learning rates) the one that is best on the mean."""
    own = [runs for runs in groups.values() if runs[0]["method"] == BASELINE]
    if not own:
        return {}
    best = max(own, key=lambda runs: statistics.fmean(float(run["accuracy"]) for run in runs))
    return {int(run["seed"]): float(run["accuracy"]) for run in best}


def _row(label: str, runs: Sequence[Mapping[str, Any]], baseline: Mapping[int, float]) -> ReportRow:
    accuracies = [float(run["accuracy"]) for run in runs]
    nlls, eces = [float(run["nll"]) for run in runs], [float(run["ece"]) for run in runs]
    perplexities = [float(run["perplexity"]) for run in runs if run.get("perplexity") is not None]
    method = str(runs[0]["method"])
    gains = [run["accuracy"] - baseline[run["seed"]] for run in runs if run["seed"] in baseline and method != BASELINE]
    interval = t_interval(gains)
    return ReportRow(
        label=label,
        method=method,
        runs=len(runs),
        accuracy=statistics.fmean(accuracies),
        accuracy_sd=_sd(accuracies),
        gain=statistics.fmean(gains) if gains else None,
        gain_low=interval[0] if interval else None,
        gain_high=interval[1] if interval else None,
        pairs=len(gains),
        nll=statistics.fmean(nlls),
        nll_sd=_sd(nlls),
        ece=statistics.fmean(eces),
        ece_sd=_sd(eces),
        agreement=_mean_of_known(map(_test_agreement, runs)),
        train_agreement=_mean_of_known(map(_train_agreement, runs)),
        seconds=statistics.fmean(float(run["seconds"]) for run in runs),
        perplexity=statistics.fmean(perplexities) if perplexities else None,
        perplexity_sd=_sd(perplexities) if perplexities else None,
    )


def _test_agreement(run: Mapping[str, Any]) -> float | None:
    """Agreement on the evaluation rows; older runs without an --eval-store put that of the training rows there."""
    return run.get("agreement") if run.get("agreement_on") != run.get("split") else None


def _train_agreement(run: Mapping[str, Any]) -> float | None:
    if run.get("agreement_on") == run.get("split"):
        return run.get("agreement")
    return run.get("train_agreement")


def _sd(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _with_sd(mean: float, sd: float | None, *, digits: int = 3) -> str:
    form = f".{digits}f" if abs(mean) < TOO_LONG else ".3g"
    return f"{mean:{form}}" if sd is None else f"{mean:{form}} +-{sd:{form}}"


def _mean_of_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _gain_text(row: ReportRow) -> str:
    if row.gain is None:
        return "-"
    if row.gain_low is None or row.gain_high is None:
        return f"{100 * row.gain:+.2f}"
    return f"{100 * row.gain:+.2f} [{100 * row.gain_low:+.2f}, {100 * row.gain_high:+.2f}]"
