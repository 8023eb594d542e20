"""Drawing the outcomes of a policy's random choices for many rows at once. numpy only: no torch, no pixels.

An outcome is a pure function of (seed, row, view, position of the op): every random word comes from Philox4x32-10
at the counter (draw, op position | view | row), so batch size, order, workers and machine count cannot change it.
Outcomes are a structured array without padding; its bytes are the store's `view_params`, hence packing loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ConfigError
from kdcache.seeding import below, philox4x32, rng_for, stream_key, unit_interval
from kdcache.views.ops import (
    AUGMENTATIONS,
    BOX_UNITS,
    ColourJitter,
    Cutmix,
    HorizontalFlip,
    Mixup,
    MixupOrCutmix,
    Op,
    PadCrop,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    TrivialAugment,
    UserTransform,
    log_spaced,
)

Outcomes = NDArray[np.void]  # (n,) structured; fields are named "POSITION.FIELD", for example "0.top"
Words = NDArray[np.uint32]

ATTEMPTS = 10  # boxes tried before the central crop (or no erasing), as torchvision does
ASPECT_LEVELS = 4096  # a table made by scalar libm: numpy's vector exp may round differently on another CPU
BETA_LEVELS = 4096
WEIGHT_ONE = 65535  # stored mixing weights are lambda * 65535


def outcome_dtype(ops: Sequence[Op]) -> np.dtype[np.void]:
    """The packed structured type of one row's outcomes; empty when there are no ops."""
    return np.dtype([(f"{position}.{name}", kind) for position, op in enumerate(ops) for name, kind in op.FIELDS])


def sample_outcomes(
    ops: Sequence[Op], seed: int, rows: NDArray[np.int64], view: int, *, sizes: NDArray[np.int64], num_rows: int
) -> Outcomes:
    """Draw every op's outcome for some rows of one view.

    Args:
        rows: (n,) row numbers in [0, num_rows).
        sizes: (n, 2) heights and widths of the source images, in pixels.
        num_rows: N, what partners are chosen from.

    Returns:
        (n,) outcomes, see `outcome_dtype`.

    Raises:
        ConfigError: rows, view or sizes out of range, or mixing with a single row.
    """
    rows, sizes = np.asarray(rows, dtype=np.int64), np.asarray(sizes, dtype=np.int64)
    _check_request(rows, view, sizes, num_rows)
    outcomes = np.zeros(len(rows), dtype=outcome_dtype(ops))
    key = stream_key("views", seed) & 0xFFFFFFFFFFFFFFFF
    for position, op in enumerate(ops):
        draws = Draws(rows, view, position, key)
        columns, sizes = _sample_op(op, draws, sizes, num_rows)
        for name, values in columns.items():
            outcomes[f"{position}.{name}"] = values
    return outcomes


def sample_mixing(ops: Sequence[Op], seed: int, rows: NDArray[np.int64], view: int, *, num_rows: int) -> Outcomes:
    """Outcomes with the mixing op drawn as `sample_outcomes` draws it and all other fields 0; it needs no sizes.

    A loader needs the partners before it has decoded anything.

    Args:
        ops: the last one mixes.
        rows: (n,) row numbers in [0, num_rows).

    Raises:
        ConfigError: as `sample_outcomes`.
    """
    rows = np.asarray(rows, dtype=np.int64)
    _check_request(rows, view, np.ones((len(rows), 2), dtype=np.int64), num_rows)
    outcomes = np.zeros(len(rows), dtype=outcome_dtype(ops))
    op, position = ops[-1], len(ops) - 1
    if isinstance(op, Mixup | Cutmix | MixupOrCutmix):
        draws = Draws(rows, view, position, stream_key("views", seed) & 0xFFFFFFFFFFFFFFFF)
        for name, values in _mix(op, draws, num_rows).items():
            outcomes[f"{position}.{name}"] = values
    return outcomes


def _check_request(rows: NDArray[np.int64], view: int, sizes: NDArray[np.int64], num_rows: int) -> None:
    if sizes.shape != (len(rows), 2):
        raise ConfigError(f"view sizes: expected ({len(rows)}, 2) heights and widths, found {sizes.shape}")
    if not 0 <= view < 2**32:
        raise ConfigError(f"view: expected 0 to 2**32 - 1, found {view}")
    if len(rows) and (rows.min() < 0 or rows.max() >= num_rows):
        raise ConfigError(f"rows: expected 0 to {num_rows - 1}, found {rows.min()} to {rows.max()}")
    if len(rows) and (sizes.min() < 1 or sizes.max() > 0xFFFF):
        raise ConfigError(f"image sizes: expected 1 to 65535 pixels, found {sizes.min()} to {sizes.max()}")


class Draws:
    """Random words for some rows of one view at one op's position; `words(i)` never depends on the other rows."""

    def __init__(self, rows: NDArray[np.int64], view: int, position: int, key: int) -> None:
        self.rows = rows
        self._view, self._position, self._key = view, position, key

    def __len__(self) -> int:
        return len(self.rows)

    def words(self, draw: int, chosen: NDArray[np.int64] | None = None) -> Words:
        """(4, n) uint32: the words of draw number `draw` (below 65536), for all rows or the chosen positions."""
        rows = self.rows if chosen is None else self.rows[chosen]
        counters = np.empty((4, len(rows)), dtype=np.uint32)
        counters[0] = self._position << 16 | draw
        counters[1] = self._view
        counters[2] = rows & 0xFFFFFFFF
        counters[3] = rows >> 32
        return philox4x32(counters, self._key)


Columns = dict[str, NDArray[np.integer]]
Sizes = NDArray[np.int64]


def _sample_op(op: Op, draws: Draws, sizes: Sizes, num_rows: int) -> tuple[Columns, Sizes]:
    """The op's columns and the sizes of the images after it."""
    match op:
        case RandomResizedCrop():
            columns = _crop_box(op, draws, sizes)
            boxes = np.stack((columns["height"], columns["width"]), axis=1).astype(np.int64)
            return columns, np.full_like(sizes, op.size) if op.size else boxes
        case PadCrop():
            words = draws.words(0)
            return {"top": below(words[0], 2 * op.padding + 1), "left": below(words[1], 2 * op.padding + 1)}, sizes
        case HorizontalFlip():
            return {"flipped": _happens(draws.words(0)[0], op.probability).astype(np.uint8)}, sizes
        case ColourJitter():
            return _jitter(op, draws), sizes
        case RandAugment():
            return {f"choice{i}": _choice(draws.words(i)) for i in range(op.num_ops)}, sizes
        case TrivialAugment():
            words = draws.words(0)
            return {"choice": _choice(words), "magnitude": below(words[2], op.bins)}, sizes
        case RandomErasing():
            return _erased_box(op, draws, sizes), sizes
        case UserTransform():
            return {"seed": draws.words(0)[0]}, sizes
        case Mixup() | Cutmix() | MixupOrCutmix():
            return _mix(op, draws, num_rows), sizes
        case _:
            assert_never(op)


def _happens(words: Words, probability: float) -> NDArray[np.bool_]:
    happens: NDArray[np.bool_] = unit_interval(words) < probability
    return happens


def _choice(words: Words) -> NDArray[np.int64]:
    choice: NDArray[np.int64] = below(words[0], len(AUGMENTATIONS)) | (words[1] >> 31).astype(np.int64) << 7
    return choice


@lru_cache(maxsize=32)
def _aspects(ratio: tuple[float, ...]) -> NDArray[np.float64]:
    return np.array(log_spaced(ratio, ASPECT_LEVELS))


def _trial_box(
    words: Words, sizes: Sizes, scale: tuple[float, ...], ratio: tuple[float, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Height and width in whole pixels, as floats, of one attempt: uniform area, log-uniform aspect."""
    area = sizes[:, 0] * sizes[:, 1] * (scale[0] + (scale[1] - scale[0]) * unit_interval(words[0]))
    aspect = _aspects(ratio)[below(words[1], ASPECT_LEVELS)]
    return np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))


def _crop_box(op: RandomResizedCrop, draws: Draws, sizes: Sizes) -> Columns:
    box = _central_box(op, sizes)
    left_over = np.arange(len(draws))
    for attempt in range(ATTEMPTS):
        words, size = draws.words(attempt, left_over), sizes[left_over]
        height, width = _trial_box(words, size, op.scale, op.ratio)
        fits = (height >= 1) & (width >= 1) & (height <= size[:, 0]) & (width <= size[:, 1])
        done, inner = left_over[fits], np.stack((height, width), axis=1)[fits].astype(np.int64)
        room = size[fits] - inner + 1
        corner = np.stack((below(words[2][fits], room[:, 0]), below(words[3][fits], room[:, 1])), axis=1)
        box[done] = np.concatenate((corner, inner), axis=1)
        left_over = left_over[~fits]
        if not len(left_over):
            break
    return dict(zip(("top", "left", "height", "width"), box.T, strict=True))


def _central_box(op: RandomResizedCrop, sizes: Sizes) -> NDArray[np.int64]:
    """(n, 4) top, left, height, width of the largest central box whose aspect is inside `ratio`."""
    height, width = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
    tall, wide = width / height < op.ratio[0], width / height > op.ratio[1]
    inner_height = np.maximum(np.where(tall, np.minimum(np.rint(width / op.ratio[0]), height), height), 1)
    inner_width = np.maximum(np.where(wide, np.minimum(np.rint(height * op.ratio[1]), width), width), 1)
    inner = np.stack((inner_height, inner_width), axis=1).astype(np.int64)
    return np.concatenate(((sizes - inner) // 2, inner), axis=1)


def _jitter(op: ColourJitter, draws: Draws) -> Columns:
    factors, words = draws.words(0), draws.words(1)
    order = np.where(_happens(words[1], op.probability), below(words[0], 24), op.SKIPPED)
    names = ("brightness", "contrast", "saturation", "hue")
    columns: Columns = {"order": order}
    for name, word in zip(names, factors, strict=True):
        # A factor that cannot vary is stored as 0 and never read: constant bytes cost nothing after compression.
        columns[name] = (word >> 24) * np.uint32(getattr(op, name) > 0)
    return columns


def _erased_box(op: RandomErasing, draws: Draws, sizes: Sizes) -> Columns:
    box = np.zeros((len(draws), 4), dtype=np.int64)  # an empty box erases nothing
    left_over = np.flatnonzero(_happens(draws.words(0)[0], op.probability))
    for attempt in range(1, ATTEMPTS + 1):
        if not len(left_over):
            break
        words, size = draws.words(attempt, left_over), sizes[left_over]
        height, width = _trial_box(words, size, op.scale, op.ratio)
        fits = (height >= 1) & (width >= 1) & (height < size[:, 0]) & (width < size[:, 1])
        inner = np.stack((height, width), axis=1)[fits]
        # At least one unit each way, so that a tiny box on a huge image is not rounded to nothing.
        units = np.maximum(np.rint(inner * BOX_UNITS / size[fits]), 1).astype(np.int64)
        corner = np.stack([below(words[2 + i][fits], BOX_UNITS + 1 - units[:, i]) for i in (0, 1)], axis=1)
        box[left_over[fits]] = np.concatenate((corner, corner + units), axis=1)
        left_over = left_over[~fits]
    return dict(zip(("top", "left", "bottom", "right"), box.T, strict=True))


def _mix(op: Mixup | Cutmix | MixupOrCutmix, draws: Draws, num_rows: int) -> Columns:
    if num_rows < 2:
        raise ConfigError(f"view op {op.NAME!r} needs at least 2 rows to choose a partner from, found {num_rows}")
    words = draws.words(0)
    mixed = _happens(words[1], op.probability)
    # An offset of 1 to N - 1 around the rows: uniform over the others and never the row itself.
    partner = (draws.rows + 1 + below(words[0], num_rows - 1)) % num_rows
    columns: Columns = {"partner": np.where(mixed, partner, draws.rows)}
    cut = mixed & (_happens(words[2], op.switch) if isinstance(op, MixupOrCutmix) else isinstance(op, Cutmix))
    if not isinstance(op, Cutmix):
        alpha = op.alpha if isinstance(op, Mixup) else op.mixup_alpha
        level = below(words[3], BETA_LEVELS)
        columns["weight"] = np.where(mixed & ~cut, _beta_levels(alpha)[level], WEIGHT_ONE)
    if not isinstance(op, Mixup):
        alpha = op.alpha if isinstance(op, Cutmix) else op.cutmix_alpha
        box = _pasted_box(draws.words(1), _beta_levels(alpha)) * cut[:, None]
        columns |= dict(zip(("top", "left", "bottom", "right"), box.T, strict=True))
    return columns


def _pasted_box(words: Words, levels: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, 4) top, left, bottom, right in 1/255: sides sqrt(1 - lambda), a uniform centre, clipped to the image."""
    share = 1.0 - levels[below(words[0], BETA_LEVELS)] / WEIGHT_ONE
    half = np.rint(np.sqrt(share) * BOX_UNITS / 2).astype(np.int64)
    centre = np.stack((below(words[1], BOX_UNITS + 1), below(words[2], BOX_UNITS + 1)), axis=1)
    box = np.concatenate((centre - half[:, None], centre + half[:, None]), axis=1)
    return np.clip(box, 0, BOX_UNITS)


@lru_cache(maxsize=16)
def _beta_levels(alpha: float) -> NDArray[np.int64]:
    """(BETA_LEVELS,) quantiles of Beta(alpha, alpha) at the middle of equally likely bins, in 1/65535.

    One table look-up per row instead of rejection sampling: one draw, and the same number on every machine. The
    distribution function is its power series at 0, which converges fast on [0, 1/2]; symmetry gives the rest.
    """
    if alpha == 1.0:
        lower = (np.arange(BETA_LEVELS // 2) + 0.5) / BETA_LEVELS
    else:
        terms = np.arange(64)
        series = np.cumprod(np.concatenate(([1.0], (terms[:-1] + 1.0 - alpha) / (terms[:-1] + 1.0)))) / (alpha + terms)
        whole = 2.0 * 0.5**alpha * np.polynomial.polynomial.polyval(0.5, series)
        goal = (np.arange(BETA_LEVELS // 2) + 0.5) / BETA_LEVELS * whole
        low, high = np.zeros_like(goal), np.full_like(goal, 0.5)
        for _ in range(60):
            middle = (low + high) / 2
            under = middle**alpha * np.polynomial.polynomial.polyval(middle, series) < goal
            low, high = np.where(under, middle, low), np.where(under, high, middle)
        lower = low
    first = np.rint(lower * WEIGHT_ONE).astype(np.int64)
    return np.concatenate((first, WEIGHT_ONE - first[::-1]))


def view_for_epoch(epoch: int, num_views: int, *, order: str = "cycle", seed: int = 0) -> int:
    """The view an epoch trains on: epoch mod V, or ("random") a fresh order of all V views every V epochs.

    Raises:
        ConfigError: `order` is neither "cycle" nor "random".
    """
    if order == "cycle":
        return epoch % num_views
    if order == "random":
        cycle, place = divmod(epoch, num_views)
        return int(rng_for("view order", seed, cycle).permutation(num_views)[place])
    raise ConfigError(f"view order: expected 'cycle' or 'random', found {order!r}")
