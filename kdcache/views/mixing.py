"""Mixup and cutmix: who the partner is, how much of each, and the mix of two batches of model inputs.

The mix is taken in each model's own input space, after its resize and normalisation: both are affine in the pixels
and the weights add to one, so this is the mix of the images, without a second rounding to uint8, and it works for a
teacher at 224 and a student at 160. A partner is seen in its own view of the same number; its own mix is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.errors import ConfigError, CorruptStoreError
from kdcache.specs import ViewSpec
from kdcache.views.ops import BOX_UNITS, MixOp, op_from_json
from kdcache.views.policy import ViewPolicy
from kdcache.views.sampling import WEIGHT_ONE, Outcomes, sample_mixing


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How n rows are mixed.

    Attributes:
        partner: (n,) int64 row numbers; the row itself where nothing is mixed.
        weight: (n,) float32 lambda, the row's own share: of its label's cross-entropy, and of its pixels.
        box: (n, 4) uint8 top, left, bottom, right in 1/255 of the input, pasted from the partner; empty for mixup.
    """

    partner: NDArray[np.int64]
    weight: NDArray[np.float32]
    box: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.partner)


def mixing_of(policy: ViewPolicy, outcomes: Outcomes) -> Mix | None:
    """The mix that outcomes record, or None when the policy does not mix."""
    if policy.mix_op is None:
        return None
    position = len(policy.ops) - 1
    names = outcomes.dtype.names or ()
    box = np.zeros((len(outcomes), 4), dtype=np.uint8)
    for i, edge in enumerate(("top", "left", "bottom", "right")):
        if f"{position}.{edge}" in names:
            box[:, i] = outcomes[f"{position}.{edge}"]
    wide = box.astype(np.int64)
    pasted = (wide[:, 2] - wide[:, 0]) * (wide[:, 3] - wide[:, 1])
    weight = 1.0 - pasted / BOX_UNITS**2
    if f"{position}.weight" in names:  # 1 where a box is pasted
        weight = weight * (outcomes[f"{position}.weight"] / WEIGHT_ONE)
    partner = outcomes[f"{position}.partner"].astype(np.int64)
    return Mix(partner=partner, weight=weight.astype(np.float32), box=box)


def drawn_mixing(policy: ViewPolicy, rows: NDArray[np.int64], view: int, *, num_rows: int) -> Mix | None:
    """The mix that `policy.sample` draws for these rows, without sizes and without drawing the rest; None without one.

    Args:
        rows: (n,) int64 in [0, num_rows).
    """
    if policy.mix_op is None:
        return None
    return mixing_of(policy, sample_mixing(policy.ops, policy.seed, rows, view, num_rows=num_rows))


def mixes(spec: ViewSpec) -> bool:
    """Whether a store's views mix two examples."""
    return bool(spec.ops) and isinstance(op_from_json(spec.ops[-1], where="views.ops"), MixOp)


def recorded_mixing(spec: ViewSpec, packed: NDArray[np.uint8], *, num_rows: int) -> Mix:
    """The mix that a store's `view_params` (n, W) record; the code of a user's transform is not needed for it.

    Raises:
        IncompatibleError: the bytes belong to another policy.
        CorruptStoreError: a partner outside [0, num_rows), or a policy that does not mix.
    """
    ops = tuple(op_from_json(op, where=f"views.ops[{i}]") for i, op in enumerate(spec.ops))
    policy = ViewPolicy(name=spec.policy, ops=ops, seed=spec.seed)
    mix = mixing_of(policy, policy.unpack(packed))
    if mix is None:
        raise CorruptStoreError(f"views {spec.policy!r} mix no examples; expected mixup or cutmix as their last op")
    check_partners(mix, num_rows)
    return mix


def check_partners(mix: Mix, num_rows: int) -> None:
    """Refuse partners that are no rows.

    Raises:
        CorruptStoreError: a partner is num_rows or more.
    """
    if len(mix) and int(mix.partner.max()) >= num_rows:
        raise CorruptStoreError(
            f"view parameters: partner row {int(mix.partner.max())}, expected 0 to {num_rows - 1}",
            hint="kdcache verify says which store is damaged; give the same dump-teacher command again",
        )


def mix_batch(inputs: Tensor, partner_inputs: Tensor, mix: Mix) -> Tensor:
    """Mix two batches of model inputs row by row.

    Args:
        inputs: float (B, C, h, w), the rows' own views, preprocessed for one model.
        partner_inputs: the same shape: the partners' views, through the same preprocessing.
        mix: B rows.

    Returns:
        float (B, C, h, w) on the device of `inputs`; a row of weight 1 is unchanged to the bit.

    Raises:
        ConfigError: shapes do not match, or the inputs are not floating-point images.
    """
    if inputs.shape != partner_inputs.shape or len(inputs) != len(mix):
        shapes = f"inputs {tuple(inputs.shape)}, partners {tuple(partner_inputs.shape)}, {len(mix)} mixes"
        raise ConfigError(f"mixing: shapes differ: {shapes}")
    if inputs.ndim != 4 or not inputs.dtype.is_floating_point:
        raise ConfigError(f"mixing: expected float (B, C, h, w), found {inputs.dtype} {tuple(inputs.shape)}")
    pasted = mix.box[:, 0] < mix.box[:, 2]
    share = torch.from_numpy(np.where(pasted, np.float32(1), mix.weight)).to(inputs)[:, None, None, None]
    # two products and a sum, each rounded once: a fused multiply-add (lerp) rounds differently on another processor
    mixed = inputs * share
    mixed += partner_inputs * (1 - share)
    if pasted.any():
        mixed = torch.where(_inside_box(mix.box, inputs), partner_inputs, mixed)
    return mixed


def _inside_box(box: NDArray[np.uint8], inputs: Tensor) -> Tensor:
    """(B, 1, h, w) bool: the pixels that come from the partner; edges rounded to nearest in whole numbers."""
    height, width = inputs.shape[2:]
    lengths = np.array([height, width, height, width], dtype=np.int64)
    edges = torch.from_numpy((2 * box.astype(np.int64) * lengths + BOX_UNITS) // (2 * BOX_UNITS)).to(inputs.device)
    top, left, bottom, right = (edges[:, i, None] for i in range(4))
    down, across = (torch.arange(length, device=inputs.device)[None] for length in (height, width))
    inside: Tensor = ((down >= top) & (down < bottom))[:, None, :, None] & ((across >= left) & (across < right))[
        :, None, None, :
    ]
    return inside


def mix_pixels(image: Tensor, partner: Tensor, mix: Mix) -> Tensor:
    """One mixed view as uint8 (C, h, w) in the size of the row's own view, for canaries; models mix their own inputs.

    Args:
        image: uint8 (C, h, w), the row's own view.
        partner: uint8 (C, h', w'), the partner's; pixels are picked from it, so that nothing is interpolated.
        mix: 1 row.
    """
    picked = partner
    for axis, length in ((1, image.shape[1]), (2, image.shape[2])):
        picked = picked.index_select(axis, torch.arange(length) * picked.shape[axis] // length)
    return mix_batch(image[None].float(), picked[None].float(), mix)[0].round().to(torch.uint8)
