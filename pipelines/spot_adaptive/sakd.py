"""Spot-adaptive distillation with the penultimate spot (RKD, PKT, CC, CRD), exact from a store.

After the penultimate features the teacher is one linear layer, so its features and its head are all that the routes
need: the same step runs from `TargetStore.features` and from a live teacher. What to train on and when to stop is the
caller's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcache.errors import ConfigError
from kdcache.features.learned import ContrastiveLoss, Embedding
from kdcache.features.table import DISTILLERS
from kdcache.features.vectors import congruence_loss, probabilistic_loss, relational_loss
from kdcache.models.head import find_head
from pipelines.spot_adaptive.routing import Control, Policy, controlled_routes, policy_loss, sampled_routes

EXACT = ("rkd", "pkt", "cc", "crd")
TEMPERATURE = 4.0


class SplitModel:
    """A network whose last linear layer is known: its penultimate features and its logits from one forward pass.

    Args:
        module: the network.
        example: a small input batch, to find the last layer.
    """

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        head = find_head(module, example)
        if head is None:
            raise ConfigError("no linear layer makes this network's logits; expected one")
        self.module = module
        self.tail = module.get_submodule(head.name)
        self.width = head.weight.shape[1]

    def __call__(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (B, ...) -> features (B, D) and logits (B, K), both with their gradients."""
        seen: list[Tensor] = []
        handle = self.tail.register_forward_pre_hook(lambda _layer, given: seen.append(given[0]))
        try:
            logits: Tensor = self.module(inputs)
        finally:
            handle.remove()
        return seen[-1], logits


class PenultimateDistiller(nn.Module):
    """One of RKD, PKT, CC and CRD on penultimate features of some rows; its parameters train with the student."""

    def __init__(self, name: str, *, student: int, teacher: int, num_rows: int, negatives: int, seed: int) -> None:
        super().__init__()
        if name not in EXACT:
            raise ConfigError(f"{name!r} is not exact from penultimate features; expected one of {', '.join(EXACT)}")
        self.name = name
        self.parts = nn.ModuleDict()
        if name == "crd":
            self.parts["contrast"] = ContrastiveLoss(
                student, teacher, num_rows=num_rows, negatives=negatives, seed=seed
            )
        if name == "cc":
            self.parts["student"] = Embedding(student, unit=False)
            self.parts["teacher"] = Embedding(teacher, unit=False)

    def forward(self, student: Tensor, teacher: Tensor, rows: Tensor) -> Tensor:
        """Features (B, D_S), (B, D_T) and row numbers (B,) -> () loss."""
        if self.name == "rkd":
            return relational_loss(student, teacher)
        if self.name == "pkt":
            return probabilistic_loss(student, teacher)
        if self.name == "cc":
            return congruence_loss(self.parts["student"](student), self.parts["teacher"](teacher.detach()))
        loss: Tensor = self.parts["contrast"](student, teacher, rows)
        return loss


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """One step: the student's and the policy's loss, and the share of rows distilled at the spot and at the output."""

    student_loss: float
    policy_loss: float
    spot_share: float
    output_share: float


class SakdStep:
    """The two-step update: policy and adapters on the routed network's loss, then the student on its own.

    Args:
        student: split; in train mode on its device.
        head: the teacher's last layer, weight (K, D_T) and bias (K,), as a store keeps them.
        distiller: rkd, pkt, cc or crd.
        lr: of the student; policy and adapters take half.
        num_rows: N, for CRD's memory; negatives: its M.
        control: which routes the student is distilled on.
        same_architecture: whether teacher and student are.
        seed: of everything that is drawn here.
    """

    def __init__(
        self,
        student: SplitModel,
        head: tuple[Tensor, Tensor],
        distiller: str,
        *,
        lr: float = 0.05,
        num_rows: int,
        negatives: int = 16_384,
        control: Control = "adaptive",
        same_architecture: bool = False,
        seed: int = 0,
    ) -> None:
        self.student, self.head, self.control = student, head, control
        self.row = DISTILLERS[distiller]
        width = head[0].shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.distiller = PenultimateDistiller(
                distiller, student=student.width, teacher=width, num_rows=num_rows, negatives=negatives, seed=seed
            )
            self.policy = Policy(width, student.width, 2, same_architecture=same_architecture)
            self.to_teacher = nn.Linear(student.width, width)
            self.to_student = nn.Linear(width, student.width)
        for module in (self.distiller, self.policy, self.to_teacher, self.to_student):
            module.to(head[0].device)
        self._draws = torch.Generator().manual_seed(seed)
        self._student_step = torch.optim.SGD(
            [*student.module.parameters(), *self.distiller.parameters()], lr=lr, momentum=0.9, weight_decay=5e-4
        )
        self._policy_step = torch.optim.SGD(list(self._policy_parameters()), lr=lr / 2, momentum=0.9, weight_decay=1e-3)

    def step(self, inputs: Tensor, labels: Tensor, rows: Tensor, teacher: Tensor) -> StepFigures:
        """Train on one batch.

        Args:
            inputs: (B, ...) what the student reads.
            labels: (B,) int64; rows: (B,) int64 row numbers.
            teacher: (B, D_T) float32, the teacher's penultimate features of the same views of these rows.
        """
        teacher = teacher.detach()
        features, logits = self.student(inputs)
        routes = sampled_routes(self.policy(teacher, features), self._draws)
        chosen = controlled_routes(routes.detach(), self.control, self._draws) > 0.5
        own = functional.cross_entropy(logits, labels)
        student_loss = own + self._distilled(features, logits, rows, teacher, chosen)
        routed = policy_loss(self._routed(inputs, teacher, routes), labels, own, routes, gamma=self.row.gamma)
        self._policy_step.zero_grad()
        torch.autograd.backward(routed, inputs=list(self._policy_parameters()))
        self._policy_step.step()
        self._student_step.zero_grad()
        torch.autograd.backward(student_loss)
        self._student_step.step()
        shares = chosen.float().mean(dim=0).tolist()
        return StepFigures(
            student_loss=float(student_loss.detach()),
            policy_loss=float(routed.detach()),
            spot_share=shares[0],
            output_share=shares[1],
        )

    def _distilled(self, features: Tensor, logits: Tensor, rows: Tensor, teacher: Tensor, chosen: Tensor) -> Tensor:
        """Beta |{a = 1}| / B D(selected rows) + |{a_out = 1}| / B T^2 KL(selected rows)."""
        loss = logits.sum() * 0
        here, out = chosen[:, 0], chosen[:, 1]
        if bool(here.any()):
            part = self.distiller(features[here], teacher[here], rows[here])
            loss = loss + self.row.weight * here.float().mean() * part
        if bool(out.any()):
            opinion = functional.linear(teacher[out], *self.head) / TEMPERATURE
            divergence = functional.kl_div(
                (logits[out] / TEMPERATURE).log_softmax(dim=1),
                opinion.log_softmax(dim=1),
                reduction="batchmean",
                log_target=True,
            )
            loss = loss + out.float().mean() * TEMPERATURE**2 * divergence
        return loss

    def _routed(self, inputs: Tensor, teacher: Tensor, routes: Tensor) -> Tensor:
        """Logits (B, K) of the network whose route at the spot and at the output the policy chose, student in eval."""
        was_training = self.student.module.training
        self.student.module.eval()
        with torch.no_grad():  # only policy and adapters step on what follows
            features, _ = self.student(inputs)
        here, out = routes[:, :1], routes[:, 1:]
        towards_teacher = here * teacher + (1 - here) * self.to_teacher(features)
        towards_student = (1 - here) * features + here * self.to_student(teacher)
        mixed: Tensor = out * functional.linear(towards_teacher, *self.head)
        mixed = mixed + (1 - out) * self.student.tail(towards_student)
        self.student.module.train(was_training)
        return mixed

    def _policy_parameters(self) -> Iterator[nn.Parameter]:
        for module in (self.policy, self.to_teacher, self.to_student):
            yield from module.parameters()
