"""One training step of spot-adaptive distillation: exact, restricted to prefixes, or with a live teacher.

The step is the same in all three: what differs is where the teacher's side comes from (`teachers`) and whether a row
that has left the teacher may come back. What to train on and when to stop is the caller's (`training`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

from kdcache.errors import ConfigError
from kdcache.features.table import DISTILLERS
from kdcache.seeding import torch_seed_for
from kdcache.training.checkpoint import pack_optimizer, unpack_optimizer, with_prefix, without_prefix
from kdcache.training.optim import set_learning_rate
from pipelines.spot_adaptive.network import INPUT, LOGITS, PENULTIMATE, SplitNetwork, adapter
from pipelines.spot_adaptive.routing import (
    READS_POLICY,
    Control,
    Policy,
    controlled_routes,
    policy_loss,
    prefix_routes,
    sampled_routes,
)
from pipelines.spot_adaptive.spots import SpotDistiller, chosen_rows
from pipelines.spot_adaptive.teachers import Teacher

Variant = Literal["sakd", "sakd-prefix", "sakd-live"]
EXACT = ("rkd", "pkt", "cc", "crd", "sp", "ft")  # after their last spot the teacher is pooling and a linear layer
LIVE = ("at", "nst", "vid", "fitnet")  # layers of the teacher read what the routes mixed
BASELINES = ("ce", "kd")
TEMPERATURE = 4.0


def check_variant(method: str, variant: Variant) -> None:
    """Refuse a combination that would not be what its name says.

    Raises:
        ConfigError: an unknown method, a live distiller without a live teacher, or an exact one in another variant.
    """
    if method in BASELINES:
        return
    if method not in DISTILLERS:
        raise ConfigError(f"method {method!r} is unknown; expected one of {', '.join((*BASELINES, *DISTILLERS))}")
    if method in LIVE and variant == "sakd":
        raise ConfigError(
            f"sakd with {method}: layers of the teacher would read what the student made, which no store holds",
            hint="sakd-prefix is our variant from the store; --live-teacher runs the published one, outside the cache "
            "promise",
        )
    if method in EXACT and variant != "sakd":
        raise ConfigError(f"{variant} with {method}: sakd is exact from a store for it", hint="use the variant sakd")


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """One step: the losses, and the share of rows distilled at each spot, the output last.

    Attributes:
        student_loss: L_S.
        policy_loss: L_P; None where no policy is trained.
        shares: of B rows, in [0, 1], S + 1 of them; the output's alone for kd, none for ce.
    """

    student_loss: float
    policy_loss: float | None
    shares: tuple[float, ...]


class SakdStep:
    """The two-step update: policy and adapters on the routed network's loss, then the student on its own.

    Args:
        student: split; in train mode on its device.
        teacher: stored or live.
        method: a distiller's name, or ce or kd: the student's loss without routes.
        example: a small batch of the student's inputs.
        num_rows: N, for CRD's memory; negatives: its M.
        variant: sakd; sakd-prefix never returns to the teacher; sakd-live is sakd with a teacher that can run on.
        control: which routes the student is distilled on. always and random train no policy: nothing would read it.
        same_architecture: whether the policy starts with a preference for distilling; None: where the values of both
            networks have the same shapes at every spot, as in the pairs that the authors' settings call homogeneous
            (resnet32x4 to resnet8x4 is, resnet32x4 to resnet32 is not).
        seed: of everything that is drawn here.

    Raises:
        ConfigError: see `check_variant`; or values that no adapter connects.
    """

    def __init__(
        self,
        student: SplitNetwork,
        teacher: Teacher,
        method: str,
        *,
        example: Tensor,
        num_rows: int,
        negatives: int = 16_384,
        variant: Variant = "sakd",
        control: Control = "adaptive",
        same_architecture: bool | None = None,
        seed: int = 0,
    ) -> None:
        check_variant(method, variant)
        self.student, self.teacher, self.method = student, teacher, method
        self.control, self._prefix, self._seed = control, variant == "sakd-prefix", seed
        row = DISTILLERS.get(method)
        self.spots = row.spots if row is not None else ()
        self._weight, self._gamma = (row.weight, row.gamma) if row is not None else (0.0, 1.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed_for("sakd-parts", seed))
            shapes = student.shapes(example, [*self.spots, PENULTIMATE])
            self.parts = nn.ModuleDict()
            if row is not None:
                self.parts["distiller"] = SpotDistiller(
                    method, student=shapes, teacher=teacher.shapes, num_rows=num_rows, negatives=negatives, seed=seed
                )
            if row is not None and control in READS_POLICY:
                same = shapes == {spot: teacher.shapes[spot] for spot in shapes}
                self._build_policy(shapes, same_architecture=same if same_architecture is None else same_architecture)
        self.parts.to(example.device)
        trained = [*student.module.parameters(), *self._parameters(of_distiller=True)]
        self._student_step = SGD(trained, lr=0.1, momentum=0.9, weight_decay=5e-4)  # lr is given with every step
        routed = list(self._parameters(of_distiller=False))
        self._policy_step = SGD(routed, lr=0.1, momentum=0.9, weight_decay=1e-3) if routed else None

    def _build_policy(self, shapes: Mapping[int, tuple[int, ...]], *, same_architecture: bool) -> None:
        theirs = self.teacher.shapes
        width = theirs[PENULTIMATE][0], shapes[PENULTIMATE][0]
        self.parts["policy"] = Policy(*width, len(self.spots) + 1, same_architecture=same_architecture)
        for spot in self.spots:
            self.parts[f"to_student{spot}"] = adapter(theirs[spot], shapes[spot])
            if not self._prefix:
                self.parts[f"to_teacher{spot}"] = adapter(shapes[spot], theirs[spot])

    def step(self, inputs: Tensor, labels: Tensor, rows: Tensor, view: int, *, number: int, lr: float) -> StepFigures:
        """Train on one batch.

        Args:
            inputs: (B, ...) what the student reads; labels: (B,) int64; rows: (B,) int64 row numbers.
            view: which view of the rows the inputs are.
            number: of this step in the whole run, from 0: what is drawn depends on it and the seed alone.
            lr: of the student; policy and adapters take half.
        """
        theirs = {} if self.method == "ce" else self.teacher.clean(inputs, rows, view)
        ours = self.student.visit(inputs, INPUT, [*self.spots, PENULTIMATE, LOGITS])
        routes = self._routes(theirs, ours, number)
        chosen = self._chosen(routes, len(labels), labels.device, number)
        own = functional.cross_entropy(ours[LOGITS], labels)
        student_loss = own + self._distilled(ours, theirs, rows, chosen)
        routed = None
        if routes is not None and self._policy_step is not None:
            mixed = self._mixed_logits(inputs, theirs, routes)
            routed = policy_loss(mixed, labels, own, routes, gamma=self._gamma)
            self._policy_step.zero_grad()
            torch.autograd.backward(routed, inputs=list(self._parameters(of_distiller=False)))
            set_learning_rate(self._policy_step, lr / 2)
            self._policy_step.step()
        self._student_step.zero_grad()
        torch.autograd.backward(student_loss)
        set_learning_rate(self._student_step, lr)
        self._student_step.step()
        return StepFigures(
            student_loss=float(student_loss.detach()),
            policy_loss=None if routed is None else float(routed.detach()),
            shares=tuple(chosen.float().mean(dim=0).tolist()),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything beside the student's weights that the next step depends on, flat."""
        packed = with_prefix("parts", self.parts.state_dict())
        for name, optimizer in self._optimizers():
            packed |= with_prefix(name, pack_optimizer(optimizer)[0])
        return packed

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` gave."""
        self.parts.load_state_dict(without_prefix("parts", tensors))
        for name, optimizer in self._optimizers():
            unpack_optimizer(optimizer, without_prefix(name, tensors), {})

    def _optimizers(self) -> Iterator[tuple[str, SGD]]:
        yield "student-step", self._student_step
        if self._policy_step is not None:
            yield "policy-step", self._policy_step

    def _routes(self, theirs: Mapping[int, Tensor], ours: Mapping[int, Tensor], number: int) -> Tensor | None:
        """(B, S + 1) with gradients, or None where no policy is asked."""
        if "policy" not in self.parts:
            return None
        logits = self.parts["policy"](theirs[PENULTIMATE], ours[PENULTIMATE])
        routes = sampled_routes(logits, self._generator("routes", number))
        return prefix_routes(routes) if self._prefix else routes

    def _chosen(self, routes: Tensor | None, rows: int, device: torch.device, number: int) -> Tensor:
        """(B, S + 1) bool: where each row is distilled."""
        if self.method in BASELINES:
            return torch.ones(rows, 1 if self.method == "kd" else 0, dtype=torch.bool, device=device)
        policy = torch.ones(rows, len(self.spots) + 1, device=device) if routes is None else routes.detach()
        return controlled_routes(policy, self.control, self._generator("coin", number)) > 0.5

    def _generator(self, purpose: str, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(torch_seed_for(f"sakd-{purpose}", self._seed, number))

    def _distilled(
        self, ours: Mapping[int, Tensor], theirs: Mapping[int, Tensor], rows: Tensor, chosen: Tensor
    ) -> Tensor:
        """Beta sum_i |{a_i = 1}| / B D_i(selected rows) + |{a_out = 1}| / B T^2 KL(selected rows)."""
        loss = ours[LOGITS].sum() * 0
        for place, spot in enumerate(self.spots):
            here = chosen[:, place]
            if bool(here.any()):
                student, teacher, kept = (chosen_rows(each, here) for each in (ours[spot], theirs[spot], rows))
                part = self.parts["distiller"](spot, student, teacher, kept)
                loss = loss + self._weight * here.float().mean() * part
        if chosen.shape[1] and bool(chosen[:, -1].any()):
            out = chosen[:, -1]
            opinion = self.teacher.run(chosen_rows(theirs[PENULTIMATE], out), PENULTIMATE, LOGITS) / TEMPERATURE
            divergence = functional.kl_div(
                (chosen_rows(ours[LOGITS], out) / TEMPERATURE).log_softmax(dim=1),
                opinion.log_softmax(dim=1),
                reduction="batchmean",
                log_target=True,
            )
            loss = loss + out.float().mean() * TEMPERATURE**2 * divergence
        return loss

    def _mixed_logits(self, inputs: Tensor, theirs: Mapping[int, Tensor], routes: Tensor) -> Tensor:
        """Logits (B, K) of the network whose routes the policy chose, student in eval mode.

            f_S = student_i(t_S), f_T = teacher_i(t_T)
            t_T = a_i f_T + (1 - a_i) h_i(f_S),  t_S = (1 - a_i) f_S + a_i g_i(f_T)
            z = a_out teacher_tail(t_T) + (1 - a_out) student_tail(t_S)

        In prefix routes t_T is f_T wherever it is used, so the teacher's part is its own clean values.
        """
        was_training = self.student.module.training
        self.student.module.eval()
        before, to_student, to_teacher = INPUT, inputs, inputs
        for place, spot in enumerate(self.spots):
            if before == INPUT:
                with torch.no_grad():  # only policy and adapters step on what follows, and none of them is before it
                    ours = self.student.run(to_student, before, spot)
                clean = theirs[spot]
            else:
                ours = self.student.run(to_student, before, spot)
                clean = theirs[spot] if self._prefix else self.teacher.run(to_teacher, before, spot)
            here = routes[:, place].view(-1, *([1] * (ours.ndim - 1)))
            to_student = (1 - here) * ours + here * self.parts[f"to_student{spot}"](clean)
            if not self._prefix:
                to_teacher = here * clean + (1 - here) * self.parts[f"to_teacher{spot}"](ours)
            before = spot
        out = routes[:, -1:]
        if self._prefix:
            opinion = self.teacher.run(theirs[PENULTIMATE], PENULTIMATE, LOGITS)
        else:
            opinion = self.teacher.run(to_teacher, before, LOGITS)
        mixed = out * opinion + (1 - out) * self.student.run(to_student, before, LOGITS)
        self.student.module.train(was_training)
        return mixed

    def _parameters(self, *, of_distiller: bool) -> Iterator[nn.Parameter]:
        """Those of the distiller, which train with the student, or those of policy and adapters."""
        for name, module in self.parts.items():
            if (name == "distiller") == of_distiller:
                yield from module.parameters()
