"""One or more cases per method: options, dense reference and which laws apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kdcache.targets.methods import methods
from kdcache.targets.soft import SoftTargets
from tests.contract import dense_methods as dense
from tests.contract.method_cases import CLASSES, Batch, columns


def rounded(targets: SoftTargets) -> SoftTargets:
    """Numbers as float16 keeps them, back in their own dtype."""
    halves = {name: getattr(targets, name) for name in ("log_prob", "tail", "label_log_prob")}
    return replace(targets, **{name: value.half().to(value.dtype) for name, value in halves.items()})


@dataclass(frozen=True, kw_only=True)
class Case:
    """A method with some options.

    `soft` options switch every hard part off, for the laws of divergences.
    """

    name: str
    dense: dense.Dense
    options: Mapping[str, object] = field(default_factory=dict)
    soft: Mapping[str, object] = field(default_factory=dict)
    full_only: bool = False
    zero_at_teacher: bool = False
    zero_below_full_k: bool = True
    zero_within: float = 1e-9
    tolerance: float = 1e-9

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{name}={value}" for name, value in self.options.items())])

    @property
    def smallest_topk(self) -> int:
        return CLASSES if self.full_only else 4

    def supports(self, topk: int) -> bool:
        return topk >= (CLASSES if self.full_only else 1)

    def loss(
        self,
        data: Batch,
        student: Tensor,
        *,
        topk: int = CLASSES,
        rows: Sequence[int] | None = None,
        mask: Tensor | None = None,
        alpha: float | None = None,
        temperature: float | None = None,
        soft_only: bool = False,
        rounded: bool = False,
        single: bool = False,
    ) -> Tensor:
        """The method's loss; `single` gives float32 targets, `rounded` float16 numbers."""
        method = methods[self.name]
        targets, label = data.targets(topk), data.label
        if rounded:
            targets = _rounded(targets)
        if single:
            targets = replace(
                targets,
                log_prob=targets.log_prob.float(),
                tail=targets.tail.float(),
                label_log_prob=targets.label_log_prob.float(),
            )
        options = {**self.options, **(self.soft if soft_only else {})}
        context = method.prepare(columns(data, topk), options=options)
        if rows is not None:
            chosen = torch.tensor(rows)
            student, targets, label = student[chosen], targets.select(chosen), label[chosen]
        return method(
            student,
            targets,
            label,
            temperature=temperature if method.default_temperature is not None else None,
            alpha=alpha if method.default_alpha is not None else None,
            options=options,
            context=context,
            mask=mask,
        )

    def dense_loss(self, data: Batch, student: Tensor) -> Tensor:
        method = methods[self.name]
        return self.dense(data, student, method.default_temperature or 1.0, method.default_alpha or 0.0, self.options)


_rounded = rounded
_TAILS = ("auto", "full", "ghost", "uniform", "renormalised")


def _decoupled(data: Batch, student: Tensor, temperature: float, alpha: float, options: Mapping[str, object]) -> Tensor:
    return dense.kd(data, student, temperature, alpha, options)  # with an empty tail only the head is left


def _sim(data: Batch, student: Tensor, temperature: float, alpha: float, options: Mapping[str, object]) -> Tensor:
    matrix = dense.similarity(data, options, _weight(data), temperature)
    return dense.blend(data, student, matrix[data.label], temperature, alpha)


def _pt_sim(data: Batch, student: Tensor, temperature: float, alpha: float, options: Mapping[str, object]) -> Tensor:
    if options.get("mix") == "split":
        matrix = dense.similarity(data, options, _weight(data), temperature)
        return dense.blend(data, student, dense.pt_target(data, temperature, matrix[data.label]), temperature, alpha)
    sim = _sim(data, student, 1.0, 1.0, options)
    pt = dense.kd_pt(data, student, temperature, 1.0, options)
    mu = float(str(options.get("mu", 0.5)))
    return (1 - alpha) * dense.ce(data, student, 1.0, 0.0, options) + alpha * ((1 - mu) * pt + mu * sim)


def _weight(data: Batch) -> Tensor:
    weight = columns(data).class_weight
    assert weight is not None
    return weight


SEED_CASES = (
    Case(name="ce", dense=dense.ce),
    Case(name="ls", dense=dense.ls),
    *(
        Case(
            name="kd",
            dense=dense.kd,
            options={"tail": tail},
            full_only=tail == "full",
            zero_at_teacher=True,
            zero_below_full_k=tail in ("auto", "ghost"),
        )
        for tail in _TAILS
    ),
    Case(name="kd", dense=_decoupled, options={"tail": "decoupled", "head_weight": 1.0}, zero_at_teacher=True),
    Case(
        name="kd",
        dense=dense.kd,
        options={"tail": "prior", "beta": 0.3},
        zero_at_teacher=True,
        zero_below_full_k=False,
    ),
    Case(name="kd-topk", dense=dense.kd, zero_at_teacher=True, zero_below_full_k=False),
    Case(name="kd-pt", dense=dense.kd_pt),
    Case(name="kd-sim", dense=_sim, options={"beta": 0.3, "power": 2.0}, tolerance=1e-5),
    Case(name="kd-sim", dense=_sim, options={"similarity": "mean"}, tolerance=1e-5),
    Case(name="kd-pt+sim", dense=_pt_sim, options={"mix": "linear", "mu": 0.3, "beta": 0.3}, tolerance=1e-5),
    Case(name="kd-pt+sim", dense=_pt_sim, options={"mix": "split", "beta": 0.3}, tolerance=1e-5),
    Case(name="kd-pt+sim", dense=_pt_sim, options={"mix": "split", "similarity": "mean"}, tolerance=1e-5),
)

NO_HARD = {"hard_weight": 0.0}

LATER_CASES = (
    Case(name="tfkd-reg", dense=dense.tfkd_reg),
    Case(name="tfkd-self", dense=dense.kd, zero_at_teacher=True),
    Case(name="dkd", dense=dense.dkd, soft=NO_HARD, zero_at_teacher=True),
    Case(name="nkd", dense=dense.nkd),
    Case(name="lskd", dense=dense.lskd, soft=NO_HARD, zero_at_teacher=True, zero_below_full_k=False),
    Case(
        name="lskd",
        dense=dense.lskd,
        options={"base": "dkd"},
        soft=NO_HARD,
        zero_at_teacher=True,
        zero_below_full_k=False,
    ),
    Case(name="ttm", dense=dense.ttm, soft=NO_HARD, zero_at_teacher=True),
    Case(name="wttm", dense=dense.wttm, soft=NO_HARD, zero_at_teacher=True),
    Case(name="ctkd", dense=dense.ctkd, zero_at_teacher=True, zero_below_full_k=False, tolerance=1e-5),
    Case(
        name="dist",
        dense=dense.dist,
        soft=NO_HARD,
        zero_at_teacher=True,
        zero_below_full_k=False,
        tolerance=1e-6,
        zero_within=1e-4,
    ),
    Case(name="mlkd", dense=dense.mlkd, soft=NO_HARD, zero_at_teacher=True, zero_below_full_k=False),
    Case(name="rskd", dense=dense.rskd),
)

CASES = SEED_CASES + LATER_CASES
