"""What the values of a block must satisfy, on the way in (any float type) and at rest (`verify --deep`). Pure numpy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ConfigError, KdcacheError, NumericError
from kdcache.specs import StoreManifest
from kdcache.store.blocks import BlockId
from kdcache.store.layout import ArrayLayout, block_arrays, is_feature
from kdcache.store.precision import MANTISSA_BITS, round_half

Columns = Mapping[str, NDArray[Any]]
_ROUNDED = ("label_log_prob", "partner_label_log_prob", "tail", "topk_log_prob")
_MAX_ERROR = 1e-4  # nats; log-softmax in float32 may end this little above 0


def to_stored(
    manifest: StoreManifest, layout: Mapping[str, ArrayLayout], block: BlockId, columns: Columns
) -> dict[str, NDArray[Any]]:
    """Check a block's columns and turn them into what is stored.

    Args:
        manifest: of the store.
        layout: of the store.
        block: which rows; view 0 also brings the arrays without a view axis.
        columns: array name -> (rows, ...) numbers; names the block does not store may be there and are ignored.

    Returns:
        array name -> contiguous (rows, ...) in the stored dtype, rounded to the store's precision.

    Raises:
        ConfigError: a column is missing, has another shape, or holds a class outside [0, K).
        NumericError: NaN, infinite or positive log-probabilities; the message names the rows.
    """
    stored = {}
    for array in block_arrays(layout, block.view):
        if array.name not in columns:
            raise ConfigError(f"{block}: column {array.name!r} is missing; expected {(block.rows, *array.row_shape)}")
        values = np.asarray(columns[array.name])
        if values.shape != (block.rows, *array.row_shape):
            raise ConfigError(
                f"{block}: column {array.name!r} has shape {values.shape}, expected {(block.rows, *array.row_shape)}"
            )
        stored[array.name] = _stored_array(manifest, array, block, values)
    problem = next(iter(problems_of(manifest, block, stored, mass_tolerance=None)), None)
    if problem is not None:
        name, rows, what = problem
        kind: type[KdcacheError] = NumericError if stored[name].dtype.kind == "f" else ConfigError
        raise kind(f"{block}: column {name!r}: {what} in {_shown(rows + block.start)}")
    return stored


def _stored_array(manifest: StoreManifest, array: ArrayLayout, block: BlockId, values: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind == "f":
        if array.name not in _ROUNDED:
            with np.errstate(over="ignore"):  # a feature that is infinite in float16 is refused with its rows named
                return np.ascontiguousarray(values, dtype=array.dtype)
        bad = _rows_where(np.isnan(values) | (values == np.inf))
        if len(bad):
            raise NumericError(f"{block}: column {array.name!r}: NaN or infinity in {_shown(bad + block.start)}")
        if array.name != "tail":
            bad = _rows_where(values > _MAX_ERROR)
            if len(bad):
                raise NumericError(f"{block}: column {array.name!r}: log p above 0 in {_shown(bad + block.start)}")
            values = np.minimum(values, 0)
        return np.ascontiguousarray(round_half(values, manifest.codec.precision), dtype=array.dtype)
    if values.dtype.kind not in "iub":
        raise ConfigError(f"{block}: column {array.name!r} is {values.dtype}, expected whole numbers")
    largest = np.iinfo(array.dtype).max
    bad = _rows_where((values < 0) | (values > largest))
    if len(bad):
        raise ConfigError(
            f"{block}: column {array.name!r}: expected 0 to {largest}, found others in {_shown(bad + block.start)}"
        )
    return np.ascontiguousarray(values, dtype=array.dtype)


def problems_of(
    manifest: StoreManifest, block: BlockId, columns: Columns, *, mass_tolerance: float | None
) -> Iterator[tuple[str, NDArray[np.int64], str]]:
    """Broken invariants of stored values: (array, rows within the block, what is wrong).

    Args:
        manifest: of the store.
        block: which block.
        columns: stored values.
        mass_tolerance: how far exp(head) + exp(label, if outside) + exp(tail mass) may be from 1; None skips this.
    """
    num_classes = manifest.dataset.num_classes
    index, log_prob = columns["topk_index"], columns["topk_log_prob"]
    checks = [("topk_index", index >= num_classes, f"a class outside 0..{num_classes - 1}")]
    ordered = np.sort(index, axis=1)
    checks.append(("topk_index", ordered[:, 1:] == ordered[:, :-1], "a class twice"))
    checks.append(("topk_log_prob", ~(log_prob <= 0), "NaN or log p above 0"))
    checks.append(("topk_log_prob", log_prob[:, 1:] > log_prob[:, :-1], "log p not descending"))
    checks.append(("topk_log_prob", np.isneginf(log_prob), "log p of -infinity"))
    for name in ("label_log_prob", "partner_label_log_prob"):
        if name in columns:
            checks.append((name, ~(columns[name] <= 0), "NaN or log p above 0"))
    tail = columns["tail"]
    checks.append(("tail", np.isnan(tail) | (tail == np.inf), "NaN or infinity"))
    checks.append(("tail", tail[:, 2] < 0, "a negative variance"))
    if tail.shape[1] == 4:
        checks.append(
            ("tail", _impossible_half_mass(manifest, tail), "log masses at T=1 and 2 that exclude each other")
        )
    if "sample_index" in columns and "sample_count" in columns:
        checks += _sample_checks(num_classes, columns["sample_index"], columns["sample_count"])
    for name in filter(is_feature, columns):
        checks.append((name, ~np.isfinite(columns[name]), "NaN, infinity or a number too large for its type"))
    if "label" in columns:
        checks.append(("label", columns["label"] >= num_classes, f"a label outside 0..{num_classes - 1}"))
    for name, wrong, what in checks:
        rows = _rows_where(wrong)
        if len(rows):
            yield name, rows, what
    if mass_tolerance is not None and "label" in columns:
        off = np.abs(total_mass(columns) - 1)
        rows = _rows_where(~(off <= mass_tolerance))
        if len(rows):
            yield (
                "tail",
                rows,
                f"probabilities sum to 1 +- {float(np.nanmax(off)):.3g}, expected +- {mass_tolerance:.3g}",
            )


def _sample_checks(
    num_classes: int, index: NDArray[Any], count: NDArray[Any]
) -> list[tuple[str, NDArray[np.bool_], str]]:
    """Drawn classes: distinct and rising, their counts positive and together the number of draws, then zeros."""
    used = count > 0
    rising = (index[:, 1:] > index[:, :-1]) | ~used[:, 1:]
    draws = count.shape[1]
    return [
        ("sample_index", index >= num_classes, f"a class outside 0..{num_classes - 1}"),
        ("sample_index", ~rising, "drawn classes that do not rise"),
        ("sample_index", ~used & (index != 0), "a class in an unused place"),
        ("sample_count", used[:, 1:] & ~used[:, :-1], "a count after an unused place"),
        ("sample_count", count.sum(axis=1, dtype=np.int64) != draws, f"counts that do not sum to {draws}"),
    ]


def _impossible_half_mass(manifest: StoreManifest, tail: NDArray[Any]) -> NDArray[np.bool_]:
    """(rows,) bool: A(1/2) outside A(1) / 2 .. (log n + A(1)) / 2, which holds for any n or fewer probabilities.

    n is K - k; rounding moves each number by at most its size / 2**(bits + 1), float32 sums by much less.
    """
    most = max(1, manifest.dataset.num_classes - manifest.codec.topk)
    empty = np.isneginf(tail)
    mass, half = (np.where(empty[:, i], 0, tail[:, i]).astype(np.float64) for i in (0, 3))
    slack = (np.abs(mass) + np.abs(half)) * 2.0 ** -MANTISSA_BITS[manifest.codec.precision] + 1e-3
    with np.errstate(invalid="ignore"):  # an infinity is another check's finding
        outside = (half < mass / 2 - slack) | (half > (np.log(most) + mass) / 2 + slack)
    wrong: NDArray[np.bool_] = (empty[:, 0] != empty[:, 3]) | (outside & ~empty[:, 0])
    return wrong


def total_mass(columns: Columns) -> NDArray[np.float64]:
    """(rows,) float64: probability of head, label when outside the top k, and tail; 1 but for rounding."""
    head = np.exp(columns["topk_log_prob"].astype(np.float64)).sum(axis=1)
    outside = (columns["topk_index"] != columns["label"][:, None]).all(axis=1)
    label = np.where(outside, np.exp(columns["label_log_prob"].astype(np.float64)), 0.0)
    mass: NDArray[np.float64] = head + label + np.exp(columns["tail"][:, 0].astype(np.float64))
    return mass


def mass_tolerance(precision: str) -> float:
    """How far the stored probabilities of a row may sum from 1: each log p is off by at most |log p| / 2**(bits + 1).

    sum p |log p| is at most log K, below 1 for anything but a near-uniform row; 12 covers K = 160,000.
    """
    return float(12 * 2.0 ** -(MANTISSA_BITS[precision] + 1)) + 1e-3


def rounding_loss(given: Columns, stored: Columns) -> float:
    """Mean KL in nats, at T=1, of the given head and tail mass against the stored ones, to second order.

    With d = log p - log q the generalised KL, sum p log(p/q) - p + q, is sum p d^2 / 2 up to a factor 1 + d/3.

    Args:
        given: float columns before rounding, (rows, ...).
        stored: the same columns after.
    """
    total = 0.0
    for name in ("topk_log_prob", "tail"):
        before = np.asarray(given[name], dtype=np.float32)
        after = np.asarray(stored[name], dtype=np.float32)
        if name == "tail":
            before, after = before[:, :1], after[:, :1]
            present = np.isfinite(before) & np.isfinite(after)
            before, after = np.where(present, before, 0), np.where(present, after, 0)
        difference = before - after
        total += float((np.exp(np.minimum(before, 0)) * difference * difference).sum(dtype=np.float64))
    return total / (2 * len(given["tail"]))


def _rows_where(wrong: NDArray[Any]) -> NDArray[np.int64]:
    if not wrong.any():  # the usual case; a sixth of the time of writing a block went into the line below
        return np.empty(0, dtype=np.int64)
    flat = wrong.reshape(len(wrong), -1).any(axis=1) if wrong.ndim > 1 else wrong
    return np.flatnonzero(flat).astype(np.int64)


def _shown(rows: NDArray[np.int64]) -> str:
    first = ", ".join(map(str, rows[:8].tolist()))
    return f"{len(rows)} rows: {first}{', ...' if len(rows) > 8 else ''}"
