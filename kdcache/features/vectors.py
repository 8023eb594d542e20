"""Distillers on feature vectors (B, D): RKD, PKT, CC. Each gives one loss about relations between the batch's rows.

The teacher's side never gets a gradient. Fewer than two rows have no relations: a loss of 0. The forms are those of the
public benchmark code of Tian et al. 2020 (github.com/HobbitLong/RepDistiller, distiller_zoo, read), which Song et al.
2022 compare with. The papers' own equations were not read again: their numbers here are recalled.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kdcache.errors import IncompatibleError

DISTANCE_WEIGHT, ANGLE_WEIGHT = 25.0, 50.0
_TINY = 1e-7


def relational_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD: distances between pairs of rows and angles between triples, as the teacher has them.

        L = 25 huber(d_S / mean d_S, d_T / mean d_T) + 50 huber(cos angle_S, cos angle_T)

    d over all pairs, the mean over pairs that differ; angles at every row between every two others. Invariant to
    rotation, shift and uniform scaling of either space; dimensions may differ.

    Args:
        student, teacher: (B, ...) each, flattened.

    Returns:
        () loss.

    Source: Park et al. 2019, arXiv:1904.05068, equations 4 to 10; weights 25 and 50 are the paper's.
    """
    ours, theirs = _rows(student, teacher)
    if len(ours) < 2:
        return ours.sum() * 0
    distance = functional.smooth_l1_loss(relative_distances(ours), relative_distances(theirs))
    angle = functional.smooth_l1_loss(angles(ours), angles(theirs))
    return DISTANCE_WEIGHT * distance + ANGLE_WEIGHT * angle


def relative_distances(rows: Tensor) -> Tensor:
    """(B, B) Euclidean distances of rows (B, D), divided by their mean over pairs that differ."""
    # not through |a|^2 + |b|^2 - 2ab, which loses near pairs in float32 and depends on the shift
    distance = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    count = (distance > 0).sum().clamp(min=1)
    return distance / (distance.sum() / count).clamp(min=torch.finfo(distance.dtype).tiny)


def angles(rows: Tensor) -> Tensor:
    """(B, B, B): cosine of the angle at row i between rows j and k, 0 where j or k is i. Memory is B^2 (B + D)."""
    towards = unit_vectors(rows[None, :, :] - rows[:, None, :], dim=2)
    return torch.bmm(towards, towards.transpose(1, 2))


def probabilistic_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """PKT: each row's distribution over the rows it resembles, as the teacher has it.

        L = mean over i, j of p_ij log(p_ij / q_ij),  p_ij = (1 + cos(t_i, t_j)) / 2, normalised over j; q: of s

    The mean is over all B^2 entries, so L is the mean row's KL divergence divided by B: the weight 30000 belongs to
    that. Invariant to rotation and to the length of every single row.

    Args:
        student, teacher: (B, ...) each, flattened.

    Returns:
        () loss in nats / B.

    Source: Passalis and Tefas 2018, arXiv:1803.10837, equations 2, 4 and 6 with the cosine kernel.
    """
    ours, theirs = _rows(student, teacher)
    if len(ours) < 2:
        return ours.sum() * 0
    q, p = neighbour_probabilities(ours), neighbour_probabilities(theirs)
    return (p * torch.log((p + _TINY) / (q + _TINY))).mean()


def neighbour_probabilities(rows: Tensor) -> Tensor:
    """(B, B) from rows (B, D): (1 + cosine) / 2 of every two rows, each row divided by its sum."""
    unit = unit_vectors(rows, dim=1)
    similar = (unit @ unit.T + 1) / 2
    return similar / similar.sum(dim=1, keepdim=True)


def congruence_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """CC as the benchmark code has it: neighbouring rows must not be off in the same dimensions.

        L = mean over i < B of sum_d |s_i - t_i|_d |s_(i+1) - t_(i+1)|_d

    The paper compares Gaussian-kernel correlation matrices; the benchmark's form, which its authors got from the
    paper's, is what Song et al. 2022 run with weight 0.02. Both sides are embedded to one width first
    (`learned.Embedding`). Zero when the embedded features are equal; depends on the order of the batch.

    Args:
        student, teacher: (B, D) each, the same D. Unlike elsewhere here the teacher's side keeps its gradient where
            it comes from a learned embedding: detach the features before the embedding.

    Returns:
        () loss.

    Raises:
        IncompatibleError: different widths.

    Source: Peng et al. 2019, arXiv:1904.01802, in the form of the benchmark code.
    """
    if student.shape != teacher.shape or student.ndim != 2:
        raise IncompatibleError(
            f"cc: expected two (B, D), found {tuple(student.shape)} and {tuple(teacher.shape)}",
            hint="embed both to one width first: features.learned.Embedding",
        )
    if len(student) < 2:
        return student.sum() * 0
    difference = (student - teacher).abs()
    return (difference[:-1] * difference[1:]).sum(dim=1).mean()


def unit_vectors(vectors: Tensor, *, dim: int) -> Tensor:
    """Vectors along an axis divided by their length; those of length 0 stay 0, with a gradient of their own size.

    `functional.normalize` divides them by 1e-12, and their gradient with them: two equal rows of a student that has
    collapsed gave the whole batch a gradient of 1e12.
    """
    length = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return vectors / torch.where(length > 0, length, 1.0)


def _rows(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if len(student) != len(teacher):
        raise IncompatibleError(f"features: {len(student)} rows against {len(teacher)}; expected the same rows")
    return student.flatten(1), teacher.detach().flatten(1)
