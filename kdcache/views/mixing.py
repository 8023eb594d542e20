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

from kdcache.errors import ConfigError
from kdcache.views.ops import BOX_UNITS
from kdcache.views.pixels import box_pixels
from kdcache.views.policy import ViewPolicy
from kdcache.views.sampling import WEIGHT_ONE, Outcomes


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
    share = np.where(pasted, np.float32(1), mix.weight)
    mixed = torch.lerp(partner_inputs, inputs, torch.from_numpy(share).to(inputs)[:, None, None, None])
    for row in np.flatnonzero(pasted):
        top, left, bottom, right = (int(edge) for edge in mix.box[row])
        rows, columns = box_pixels(top, bottom, inputs.shape[2]), box_pixels(left, right, inputs.shape[3])
        mixed[row, :, rows, columns] = partner_inputs[row, :, rows, columns]
    return mixed
