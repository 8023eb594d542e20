"""The ten feature distillers as the spot-adaptive paper runs them: where they sit and how much they weigh.

Numbers are Song et al. 2022's (arXiv:2205.03399) as METHODS section 7 records them; not read again from the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class FeatureDistiller:
    """One row of the table.

    Attributes:
        name: as the papers abbreviate it.
        weight: beta, on the distiller's loss beside cross-entropy and KD.
        spots: which features it compares: 1 to 3 are the ends of the stages ("layer1" ...), 4 is "penultimate".
        gamma: factor on the policy's loss in spot-adaptive training where routing made it worse (its inverse where
            better).
        place: where its function or module is, below `kdcache.features`.
    """

    name: str
    weight: float
    spots: tuple[int, ...]
    gamma: float
    place: str

    @property
    def features(self) -> tuple[str, ...]:
        """The store's features that it needs, as `dump-teacher --features` takes them."""
        return tuple("penultimate" if spot == 4 else f"layer{spot}" for spot in self.spots)


def _row(name: str, weight: float, spots: tuple[int, ...], place: str, gamma: float = 1.0) -> FeatureDistiller:
    return FeatureDistiller(name=name, weight=weight, spots=spots, gamma=gamma, place=place)


DISTILLERS: Mapping[str, FeatureDistiller] = MappingProxyType(
    {
        row.name: row
        for row in (
            _row("fitnet", 1.0, (2,), "maps.fitnet_loss"),
            _row("at", 1000.0, (1, 2, 3), "maps.attention_loss", gamma=2.0),
            _row("sp", 3000.0, (3,), "maps.similarity_loss"),
            _row("cc", 0.02, (4,), "vectors.congruence_loss"),
            _row("vid", 1.0, (1, 2, 3), "learned.VariationalLoss", gamma=2.0),
            _row("rkd", 1.0, (4,), "vectors.relational_loss", gamma=2.0),
            _row("pkt", 30_000.0, (4,), "vectors.probabilistic_loss"),
            _row("ft", 200.0, (3,), "maps.factor_loss"),
            _row("nst", 50.0, (1, 2, 3), "maps.selectivity_loss"),
            _row("crd", 0.8, (4,), "learned.ContrastiveLoss"),
        )
    }
)
