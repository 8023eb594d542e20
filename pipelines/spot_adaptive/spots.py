"""A distiller at its spots: one loss per spot, with the parameters and memories that some distillers have."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdcache.features.learned import ContrastiveLoss, Embedding, Regressor, VariationalLoss
from kdcache.features.maps import attention_loss, factor_loss, fitnet_loss, selectivity_loss, similarity_loss
from kdcache.features.table import DISTILLERS
from kdcache.features.vectors import congruence_loss, probabilistic_loss, relational_loss

_PLAIN = {
    "at": attention_loss,
    "sp": similarity_loss,
    "ft": factor_loss,
    "nst": selectivity_loss,
    "rkd": relational_loss,
    "pkt": probabilistic_loss,
}


class SpotDistiller(nn.Module):
    """One of the ten distillers at every spot it compares; its parameters train with the student.

    Args:
        name: a row of `kdcache.features.table.DISTILLERS`.
        student, teacher: shape of one row's value by spot.
        num_rows: N, for CRD's memory.
        negatives: CRD's M.
        seed: of CRD's draws.
    """

    def __init__(
        self,
        name: str,
        *,
        student: Mapping[int, tuple[int, ...]],
        teacher: Mapping[int, tuple[int, ...]],
        num_rows: int,
        negatives: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.name = name
        self.parts = nn.ModuleDict()
        for spot in DISTILLERS[name].spots:
            ours, theirs = student[spot][0], teacher[spot][0]
            if name == "crd":
                contrast = ContrastiveLoss(ours, theirs, num_rows=num_rows, negatives=negatives, seed=seed)
                self.parts[f"contrast{spot}"] = contrast
            elif name == "cc":
                self.parts[f"student{spot}"] = Embedding(ours, unit=False)
                self.parts[f"teacher{spot}"] = Embedding(theirs, unit=False)
            elif name == "fitnet":
                self.parts[f"regressor{spot}"] = Regressor(ours, theirs)
            elif name == "vid":
                self.parts[f"variational{spot}"] = VariationalLoss(ours, theirs)

    def forward(self, spot: int, student: Tensor, teacher: Tensor, rows: Tensor) -> Tensor:
        """Loss at a spot: values (B, ...) of both nets for the rows (B,) that are distilled there -> ().

        Relations and batch norms need two rows: fewer give 0 where the distiller has either.
        """
        plain = _PLAIN.get(self.name)
        if plain is not None:
            return plain(student, teacher)
        teacher = teacher.detach()
        if self.name == "cc":
            return congruence_loss(self.parts[f"student{spot}"](student), self.parts[f"teacher{spot}"](teacher))
        if self.name == "fitnet":
            if len(student) < 2:
                return student.sum() * 0
            return fitnet_loss(self.parts[f"regressor{spot}"](student), teacher)
        part = self.parts[f"variational{spot}"] if self.name == "vid" else self.parts[f"contrast{spot}"]
        loss: Tensor = part(student, teacher, rows) if self.name == "crd" else part(student, teacher)
        return loss


def chosen_rows(values: Tensor, chosen: Tensor) -> Tensor:
    """The rows of (B, ...) where (B,) bool is true; the very tensor where all are."""
    return values if bool(chosen.all()) else values[torch.nonzero(chosen)[:, 0]]
