"""The encoder as its formulas read: whole batch, `Tensor.topk`, masks. What the store promised before it was made fast.

The product's encoder works in parts, in place and with a search of its own; it must store the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.targets.soft import LARGEST_STORED, LabelMix


def plain_columns(
    logits: Tensor, label: Tensor, *, topk: int, tail_numbers: int = 4, mix: LabelMix | None = None
) -> dict[str, Tensor]:
    """The arrays of `EncodedBatch.columns`, unrounded, and `finite`."""
    low, high = torch.aminmax(logits, dim=1)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_prob = torch.log_softmax(wide, dim=1).clamp(min=-LARGEST_STORED)
    head, index = log_prob.topk(topk, dim=1, sorted=True)
    columns = {
        "topk_index": index,
        "topk_log_prob": head,
        "label": label,
        "label_log_prob": log_prob.gather(1, label[:, None])[:, 0],
        "finite": torch.isfinite(low) & torch.isfinite(high),
    }
    if mix is not None:
        columns["partner_label_log_prob"] = log_prob.gather(1, mix.partner_label[:, None])[:, 0]
    named = torch.zeros_like(log_prob, dtype=torch.bool).scatter_(1, index, True).scatter_(1, label[:, None], True)
    divisor = (~named).sum(dim=1).clamp(min=1)
    mean = log_prob.masked_fill(named, 0.0).sum(dim=1) / divisor
    variance = (log_prob - mean[:, None]).masked_fill(named, 0.0).square().sum(dim=1) / divisor
    rest = log_prob.masked_fill(named, -torch.inf)
    largest = rest.amax(dim=1).clamp(min=-LARGEST_STORED)
    root = ((rest - largest[:, None]) / 2).exp()
    numbers = [root.square().sum(dim=1).log() + largest, mean, variance.clamp(max=LARGEST_STORED)]
    if tail_numbers == 4:
        numbers.append(root.sum(dim=1).log() + largest / 2)
    return columns | {"tail": torch.stack(numbers, dim=1)}
