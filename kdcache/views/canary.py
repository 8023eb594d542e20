"""Proof that views replay: digests and small samples of some views, recomputed wherever they are used again.

Equal digests settle it. Otherwise the stored uint8 samples tell the harmless rounding of another CPU or decoder from
pixels that moved. The thresholds and what they were checked on are in docs/views.md. No store and no data set here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.canonical import canonical_json, from_json, to_json
from kdcache.errors import ConfigError, CorruptStoreError, IncompatibleError
from kdcache.specs import ViewSpec
from kdcache.views.mixing import Mix, mix_pixels, mixing_of
from kdcache.views.ops import AUGMENTATIONS
from kdcache.views.policy import ViewPolicy
from kdcache.views.sampling import Outcomes

ReadImage = Callable[[int], Tensor]  # row -> uint8 (C, H, W), decoded and not yet augmented

CANARIES = 8
SAMPLE_SIDE = 16  # at most 16 x 16 pixels are kept: 768 bytes in colour
ROUNDING_MEAN = (
    1.0  # of 255; rounding differs by 0.1 to 0.3, another interpolation by 1 to 7, a shift by a pixel by 5 to 50
)
ROUNDING_TYPICAL = 2  # 95 of 100 sampled values differ by no more than this
EQUALIZED = 6  # both limits times this after histogram equalisation, which stretches a level of rounding to many


@dataclass(frozen=True, kw_only=True)
class Canary:
    """One replayed view: its outcome (hex of the packed bytes), its pixels' digest, and a strided sample of them.

    A mixed view is the mix in the size of the row's own view (`mixing.mix_pixels`); it also keeps the partner's
    outcome and source size, so that replaying it draws nothing.
    """

    row: int
    view: int
    size: tuple[int, ...]
    outcome: str
    shape: tuple[int, ...]
    digest: str
    sample: str
    partner_size: tuple[int, ...] = ()
    partner_outcome: str = ""


@dataclass(frozen=True, kw_only=True)
class CanaryReport:
    """What comparing canaries said: how many, which differ by rounding, which have drifted (one line each)."""

    compared: int
    rounding: tuple[str, ...] = ()
    drifted: tuple[str, ...] = ()

    @property
    def warning(self) -> str:
        """A sentence for the screen when pixels are not bit-equal; empty when they are."""
        if not self.rounding and not self.drifted:
            return ""
        what = "drifted" if self.drifted else "differ by rounding"
        return f"views {what} from the store's ({len(self.rounding) + len(self.drifted)} of {self.compared} canaries)"


def view_libraries(device: torch.device | str | None = None) -> dict[str, str]:
    """Versions of what makes pixels, the machine's type, and the path: "single" images or "batch" on a device."""
    names = ("torch", "torchvision", "numpy", "pillow")
    path = "single" if device is None else f"batch on {torch.device(device).type}"
    return {**{name: importlib.metadata.version(name) for name in names}, "machine": platform.machine(), "path": path}


def make_canaries(
    policy: ViewPolicy,
    read_image: ReadImage,
    num_rows: int,
    *,
    num_views: int = 1,
    count: int = CANARIES,
    device: torch.device | str | None = None,
) -> tuple[Mapping[str, Any], ...]:
    """Canaries for `ViewSpec.canaries`: rows spread over the data set, views in turn; none for a policy without ops.

    Args:
        read_image: called a few times for each row, and for partners of mixed views.
        device: None replays image by image; a device replays through `apply_batch` there.

    Raises:
        ConfigError: a view came out differently the second time: a transform uses other randomness than its generator.
    """
    if not policy.is_random:
        return ()
    rows = np.unique(np.linspace(0, num_rows - 1, count).round().astype(np.int64))
    return tuple(
        to_json(_make(policy, read_image, row, i % num_views, num_rows, device)) for i, row in enumerate(rows.tolist())
    )


def _make(
    policy: ViewPolicy,
    read_image: ReadImage,
    row: int,
    view: int,
    num_rows: int,
    device: torch.device | str | None,
) -> Canary:
    size, outcomes = _drawn(policy, read_image, row, view, num_rows)
    mix = _mix_of(policy, outcomes, row)
    partner_size, partner = (
        (None, None) if mix is None else _drawn(policy, read_image, int(mix.partner[0]), view, num_rows)
    )
    pixels = _replay(policy, read_image, row, outcomes, partner, device)
    if not torch.equal(pixels, _replay(policy, read_image, row, outcomes, partner, device)):
        raise ConfigError(
            f"view {view} of row {row} came out differently when replayed",
            hint="a transform may draw from the generator it is given and from nothing else",
        )
    return Canary(
        row=row,
        view=view,
        size=tuple(size[0].tolist()),
        outcome=policy.pack(outcomes).tobytes().hex(),
        shape=tuple(pixels.shape),
        digest=_digest(pixels),
        sample=base64.b64encode(_sample(pixels).tobytes()).decode(),
        partner_size=() if partner_size is None else tuple(partner_size[0].tolist()),
        partner_outcome="" if partner is None else policy.pack(partner).tobytes().hex(),
    )


def _drawn(
    policy: ViewPolicy, read_image: ReadImage, row: int, view: int, num_rows: int
) -> tuple[NDArray[np.int64], Outcomes]:
    """(1, 2) source size and (1,) outcome of one row."""
    size = np.array([read_image(row).shape[-2:]], dtype=np.int64)
    return size, policy.sample(np.array([row]), view, sizes=size, num_rows=num_rows)


def _mix_of(policy: ViewPolicy, outcomes: Outcomes, row: int) -> Mix | None:
    """The mix of one row; None where nothing is mixed into it."""
    mix = mixing_of(policy, outcomes)
    return None if mix is None or int(mix.partner[0]) == row else mix


def check_canaries(
    policy: ViewPolicy,
    spec: ViewSpec,
    read_image: ReadImage,
    num_rows: int,
    *,
    allow_drift: bool = False,
    device: torch.device | str | None = None,
) -> CanaryReport:
    """Replay the manifest's canaries from their stored outcomes and compare.

    Args:
        num_rows: N of the data set; a canary of a row beyond it is corrupt.
        allow_drift: report drift instead of refusing it.

    Returns:
        The report; its `warning` is for the screen.

    Raises:
        IncompatibleError: pixels drifted, with one line for each canary that did.
        CorruptStoreError: a canary is malformed.
    """
    rounding: list[str] = []
    drifted: list[str] = []
    canaries = [_parse(value, i, num_rows) for i, value in enumerate(spec.canaries)]
    for i, canary in enumerate(canaries):
        outcomes, partner = _stored_outcomes(canary, policy, i, num_rows)
        pixels = _replay(policy, read_image, canary.row, outcomes, partner, device)
        if _digest(pixels) == canary.digest:
            continue
        slack = EQUALIZED if _equalizes(outcomes) else 1
        harmless, line = _compare(canary, pixels, _stored_sample(canary, i), slack)
        (rounding if harmless else drifted).append(f"{line}; outcome {describe(outcomes)}")
    report = CanaryReport(compared=len(canaries), rounding=tuple(rounding), drifted=tuple(drifted))
    if drifted and not allow_drift:
        changed = _changed_libraries(spec.libraries, view_libraries(device))
        raise IncompatibleError(
            f"{report.warning}; {changed}\n    " + "\n    ".join(drifted),
            hint="install the versions the store was made with, or --allow-view-drift to train on these pixels anyway",
        )
    return report


def check_sampling(policy: ViewPolicy, spec: ViewSpec, num_rows: int) -> None:
    """Draw the canaries' outcomes again: needed before rows or views are added to a store, not for reading one.

    Raises:
        IncompatibleError: an outcome is not the one the store recorded.
        CorruptStoreError: a canary is malformed.
    """
    for i, value in enumerate(spec.canaries):
        canary = _parse(value, i, num_rows)
        stored, partner = _stored_outcomes(canary, policy, i, num_rows)
        again = [(canary.row, canary.size, stored)]
        if partner is not None:
            mix = mixing_of(policy, stored)
            assert mix is not None
            again.append((int(mix.partner[0]), canary.partner_size, partner))
        for row, size, before in again:
            drawn = policy.sample(np.array([row]), canary.view, sizes=np.array([size]), num_rows=num_rows)
            if policy.pack(drawn).tobytes() != policy.pack(before).tobytes():
                raise IncompatibleError(
                    f"row {row}, view {canary.view}: the store has {describe(before)}, drawn now {describe(drawn)}",
                    hint="another kdcache version made this store: dump a new one, or grow it with that version",
                )


def check_policy(policy: ViewPolicy, spec: ViewSpec) -> None:
    """Refuse a policy that does not make a store's views.

    Raises:
        IncompatibleError: other ops, parameters or seed; the message has one line for each difference.
    """
    mine, stored = policy.spec().identity(), spec.identity()
    if mine == stored:
        return
    lines = (
        [f"seed: the store has {stored['seed']}, asked for {mine['seed']}"] if mine["seed"] != stored["seed"] else []
    )
    for i in range(max(len(mine["ops"]), len(stored["ops"]))):
        theirs, ours = (canonical_json(ops[i]) if i < len(ops) else "nothing" for ops in (stored["ops"], mine["ops"]))
        if theirs != ours:
            lines.append(f"op {i}: the store has {theirs}, asked for {ours}")
    raise IncompatibleError(
        f"the store's views are {spec.policy!r}, not the {policy.name!r} asked for:\n    " + "\n    ".join(lines),
        hint="leave --augment out to use the store's own views, or dump a store with these",
    )


def describe(outcomes: Outcomes) -> str:
    """The first outcome as text for messages: `0.top=3 0.left=5 1.flipped=1`."""
    return " ".join(f"{name}={int(outcomes[0][name])}" for name in outcomes.dtype.names or ())


def _replay(
    policy: ViewPolicy,
    read_image: ReadImage,
    row: int,
    outcomes: Outcomes,
    partner: Outcomes | None,
    device: torch.device | str | None,
) -> Tensor:
    def view_of(image: Tensor, outcome: Outcomes) -> Tensor:
        if device is None:
            return policy.apply(image, outcome[0])
        return policy.apply_batch(image[None].to(device), outcome)[0].cpu()

    own = view_of(read_image(row), outcomes)
    mix = mixing_of(policy, outcomes)
    if mix is None or partner is None:
        return own
    return mix_pixels(own, view_of(read_image(int(mix.partner[0])), partner), mix)


def _digest(pixels: Tensor) -> str:
    return hashlib.sha256(str(tuple(pixels.shape)).encode() + pixels.contiguous().numpy().tobytes()).hexdigest()


def _sample(pixels: Tensor) -> NDArray[np.uint8]:
    """(C, <= 16, <= 16) of the pixels, strided: no interpolation that could itself differ."""
    rows, columns = (
        np.arange(min(length, SAMPLE_SIDE)) * length // min(length, SAMPLE_SIDE) for length in pixels.shape[-2:]
    )
    sample: NDArray[np.uint8] = pixels.numpy()[:, rows[:, None], columns[None, :]]
    return sample


def _parse(value: Any, i: int, num_rows: int) -> Canary:
    canary = from_json(Canary, to_json(value), where=f"views.canaries[{i}]")
    shaped = len(canary.shape) == 3 and len(canary.size) == 2 and min(*canary.shape, *canary.size) >= 1
    if not shaped or canary.view < 0 or not 0 <= canary.row < num_rows:
        raise CorruptStoreError(f"views.canaries[{i}]: row {canary.row}, view, size or shape make no sense")
    return canary


def _stored_outcomes(canary: Canary, policy: ViewPolicy, i: int, num_rows: int) -> tuple[Outcomes, Outcomes | None]:
    """The canary's outcome, and its partner's where the view is a mix.

    Raises:
        CorruptStoreError: bytes of another width, or a partner without outcome, without size or outside the data.
    """
    outcomes = policy.unpack(_packed(canary.outcome, policy, f"views.canaries[{i}].outcome"))
    mix = _mix_of(policy, outcomes, canary.row)
    if mix is None:
        return outcomes, None
    if int(mix.partner[0]) >= num_rows or len(canary.partner_size) != 2 or min(canary.partner_size) < 1:
        raise CorruptStoreError(f"views.canaries[{i}]: partner row {int(mix.partner[0])} or its size makes no sense")
    return outcomes, policy.unpack(_packed(canary.partner_outcome, policy, f"views.canaries[{i}].partner_outcome"))


def _packed(text: str, policy: ViewPolicy, where: str) -> NDArray[np.uint8]:
    try:
        raw = bytes.fromhex(text)
    except ValueError as error:
        raise CorruptStoreError(f"{where}: not hexadecimal") from error
    if len(raw) != policy.width:
        raise CorruptStoreError(f"{where}: expected {policy.width} bytes, found {len(raw)}")
    return np.frombuffer(raw, dtype=np.uint8)[None]


def _stored_sample(canary: Canary, i: int) -> NDArray[np.uint8]:
    channels, height, width = canary.shape
    shape = (channels, min(height, SAMPLE_SIDE), min(width, SAMPLE_SIDE))
    try:
        raw = base64.b64decode(canary.sample, validate=True)
    except binascii.Error as error:
        raise CorruptStoreError(f"views.canaries[{i}].sample: not base64") from error
    if len(raw) != shape[0] * shape[1] * shape[2]:
        raise CorruptStoreError(f"views.canaries[{i}].sample: expected {shape} bytes, found {len(raw)}")
    return np.frombuffer(raw, dtype=np.uint8).reshape(shape)


def _equalizes(outcomes: Outcomes) -> bool:
    choices = [name for name in outcomes.dtype.names or () if name.split(".")[1].startswith("choice")]
    return any(AUGMENTATIONS[int(outcomes[0][name]) & 127] == "equalize" for name in choices)


def _compare(canary: Canary, pixels: Tensor, stored: NDArray[np.uint8], slack: int) -> tuple[bool, str]:
    """Whether the difference is rounding, and a line that says how large it is."""
    where = f"row {canary.row}, view {canary.view}"
    if tuple(pixels.shape) != canary.shape:
        return False, f"{where}: shape {canary.shape} became {tuple(pixels.shape)}"
    apart = np.abs(_sample(pixels).astype(np.int64) - stored)
    harmless = apart.mean() <= slack * ROUNDING_MEAN and np.quantile(apart, 0.95) <= slack * ROUNDING_TYPICAL
    line = f"{where}: pixels differ by {apart.mean():.2f} of 255 on average, {apart.max()} at most"
    return bool(harmless), line


def _changed_libraries(stored: Mapping[str, Any], here: Mapping[str, str]) -> str:
    changed = [f"{name} {stored.get(name)} then, {now} now" for name, now in here.items() if stored.get(name) != now]
    return "; ".join(changed) if changed else "the libraries are the same: were the images changed?"
