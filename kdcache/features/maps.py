"""Distillers on feature maps (B, C, H, W): FitNet, AT, SP, NST, FT. Each gives one loss for the batch.

The teacher's side never gets a gradient. Where height and width differ, the larger map is averaged down to the smaller
one's size; where channels differ, FitNet needs a regressor first (`learned.Regressor`). The forms are those of the
public benchmark code of Tian et al. 2020 (github.com/HobbitLong/RepDistiller, distiller_zoo, read), which Song et al.
2022 compare with. The papers' own equations were not read again: their numbers here are recalled.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kdcache.errors import IncompatibleError
from kdcache.features.vectors import unit_vectors


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps (B, C, h, w) at the smaller height and width; the teacher's cut off from the gradient.

    Raises:
        IncompatibleError: not maps of the same rows.
    """
    if student.ndim != 4 or teacher.ndim != 4 or len(student) != len(teacher):
        raise IncompatibleError(
            f"feature maps: expected (B, C, H, W) of the same rows, found {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}"
        )
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    teacher = teacher.detach()
    if student.shape[2:] != size:
        student = functional.adaptive_avg_pool2d(student, size)
    if teacher.shape[2:] != size:
        teacher = functional.adaptive_avg_pool2d(teacher, size)
    return student, teacher


def fitnet_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of hidden activations.

        L = mean (f_S - f_T)^2

    Args:
        student: (B, C, H, W), already regressed to the teacher's channels.
        teacher: (B, C, H', W').

    Returns:
        () loss, zero only when the maps are equal.

    Raises:
        IncompatibleError: different channels.

    Source: Romero et al. 2015, arXiv:1412.6550, equation 3 with the mean instead of half the sum (recalled).
    """
    student, teacher = same_size(student, teacher)
    if student.shape != teacher.shape:
        raise IncompatibleError(
            f"fitnet: {student.shape[1]} channels against {teacher.shape[1]}; expected the same",
            hint="regress the student's map first: features.learned.Regressor",
        )
    return functional.mse_loss(student, teacher)


def attention_map(features: Tensor) -> Tensor:
    """(B, H*W) unit vectors: where a map (B, C, H, W) is active, mean over channels of f^2, normalised per row."""
    return functional.normalize(features.square().mean(dim=1).flatten(1), dim=1)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Attention transfer: mean squared difference of attention maps; any two channel counts.

        L = mean (Q_S - Q_T)^2,  Q = sum_c f_c^2 / ||sum_c f_c^2||_2

    Invariant to the scale of either map and to the order and sign of its channels.

    Args:
        student, teacher: (B, C, H, W) each, channels may differ.

    Returns:
        () loss.

    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928, equation 2 with p = 2, squared and averaged (recalled).
    """
    student, teacher = same_size(student, teacher)
    return (attention_map(student) - attention_map(teacher)).square().mean()


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving distillation: which rows of the batch look alike.

        L = ||G_S - G_T||_F^2 / B^2,  G = rows of F F^T divided by their norms, F the (B, CHW) features

    Invariant to any rotation of the feature space and to its scale; dimensions may differ. Zero rows or one: a loss
    of 0 with a gradient of 0.

    Args:
        student, teacher: (B, ...) each.

    Returns:
        () loss.

    Raises:
        IncompatibleError: different numbers of rows.

    Source: Tung and Mori 2019, arXiv:1907.09682, equations 1 to 4.
    """
    if len(student) != len(teacher):
        raise IncompatibleError(f"sp: {len(student)} rows against {len(teacher)}; expected the same rows")
    difference = row_similarity(student) - row_similarity(teacher.detach())
    return difference.square().sum() / max(1, len(student)) ** 2


def row_similarity(features: Tensor) -> Tensor:
    """(B, B): inner products of the rows of (B, ...), each row of the result of norm 1."""
    flat = features.flatten(1)
    return unit_vectors(flat @ flat.T, dim=1)


def selectivity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Neuron selectivity transfer: squared maximum mean discrepancy between the sets of channels.

        L = mean k(t, t') + mean k(s, s') - 2 mean k(s, t),  k(a, b) = (a . b)^2, channels as unit vectors over H*W

    Invariant to the order, sign and scale of channels; channel counts may differ.

    Args:
        student, teacher: (B, C, H, W) each.

    Returns:
        () loss, at least 0 up to rounding.

    Source: Huang and Wang 2017, arXiv:1707.01219, equations 3 and 5 with the polynomial kernel d = 2, c = 0.
    """
    student, teacher = same_size(student, teacher)
    ours, theirs = (functional.normalize(each.flatten(2), dim=2) for each in (student, teacher))
    return _kernel(theirs, theirs) + _kernel(ours, ours) - 2 * _kernel(ours, theirs)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b.transpose(1, 2)).square().mean()


def factor_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Factor transfer without its paraphraser and translator, as the benchmark code has it.

        L = mean |Q_S - Q_T|,  Q = mean_c f_c^2 as a unit vector per row

    The paper trains an autoencoder on the teacher's map first and compares its factors, and so does the code of Song et
    al. 2022 (train.py, read), whose weight 200 belongs to that; the benchmark's criterion compares attention maps by
    absolute difference. This is the criterion alone.

    Args:
        student, teacher: (B, C, H, W) each.

    Returns:
        () loss.

    Source: Kim et al. 2018, arXiv:1802.04977, equation 4 with p = 1 (recalled), factors as in the benchmark code.
    """
    student, teacher = same_size(student, teacher)
    return (attention_map(student) - attention_map(teacher)).abs().mean()
