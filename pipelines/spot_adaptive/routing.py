"""The parts of spot-adaptive training that decide where to distil: the policy, its samples, the controls, the loss."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcache.errors import ConfigError

Control = Literal["adaptive", "always", "random", "inverted"]
CONTROLS: tuple[Control, ...] = ("adaptive", "always", "random", "inverted")
READS_POLICY: tuple[Control, ...] = ("adaptive", "inverted")  # the others need no policy, and train none
TAU = 5.0  # constant over training
SAME_ARCHITECTURE_BIAS = 10.0


class Policy(nn.Module):
    """One linear layer from both nets' penultimate features to two logits per spot; index 0 is "distil here".

    Args:
        teacher, student: widths of the penultimate features.
        spots: S + 1, the output included.
        same_architecture: start with +10 on "distil here".

    Source: Song et al. 2022, arXiv:2205.03399, as METHODS section 7 records it; checked against the authors' code
    (github.com/zju-vipa/spot-adaptive-pytorch, train.py, read), `policy_loss` below too.
    """

    def __init__(self, teacher: int, student: int, spots: int, *, same_architecture: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(teacher + student, 2 * spots)
        if same_architecture:
            with torch.no_grad():
                self.linear.bias[0::2] += SAME_ARCHITECTURE_BIAS

    def forward(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Features (B, D_T), (B, D_S), cut off from the gradient here -> logits (B, S + 1, 2)."""
        both = torch.cat([teacher.detach(), student.detach()], dim=1)
        logits: Tensor = self.linear(both)
        return logits.view(len(both), -1, 2)


def sampled_routes(logits: Tensor, generator: torch.Generator) -> Tensor:
    """(B, S + 1) of 1 (distil here) and 0, drawn by hard Gumbel-softmax at tau 5; the gradient is the soft one's.

    Args:
        logits: (B, S + 1, 2).
        generator: of the noise, on the CPU: the same draws on every device.
    """
    noise = -torch.empty(logits.shape).exponential_(generator=generator).log().to(logits)
    soft = ((logits + noise) / TAU).softmax(dim=2)[..., 0]
    hard = (soft.detach() > 0.5).to(soft)
    return hard + (soft - soft.detach())


def prefix_routes(routes: Tensor) -> Tensor:
    """(B, S + 1): a row leaves the teacher at its first 0 and does not come back; the gradient is the product's.

    Our restriction, not the paper's: the teacher then never reads what the student made, so a store has all of it.
    """
    return routes.cumprod(dim=1)


def controlled_routes(routes: Tensor, control: Control, generator: torch.Generator) -> Tensor:
    """The routes a student is distilled on: the policy's, all of them, a fair coin's, or the policy's turned round.

    Args:
        routes: (B, S + 1) of the policy; always and random use the shape alone.
        control: which.
        generator: of the coin.
    """
    if control == "adaptive":
        return routes
    if control == "always":
        return torch.ones_like(routes)
    if control == "inverted":
        return 1 - routes
    return torch.randint(2, routes.shape, generator=generator).to(routes)


def policy_loss(mixed_logits: Tensor, labels: Tensor, student_loss: Tensor, routes: Tensor, *, gamma: float) -> Tensor:
    """How good the routed network is; () nats.

        L_P = CE(z, y) * gamma  if it is above the student's own CE, else CE(z, y) / gamma
              + max(0, B / 2 - sum over rows of a_out)

    Args:
        mixed_logits: z, (B, K).
        labels: (B,).
        student_loss: the student's own cross-entropy, ().
        routes: (B, S + 1); the last column is the output's.
        gamma: of the distiller, at least 1.
    """
    loss = functional.cross_entropy(mixed_logits, labels)
    weighted = loss * gamma if bool(loss.detach() > student_loss.detach()) else loss / gamma
    return weighted + (len(labels) / 2 - routes[:, -1].sum()).clamp(min=0)


def known_control(name: str) -> Control:
    """A control by its name.

    Raises:
        ConfigError: no such control.
    """
    for control in CONTROLS:
        if control == name:
            return control
    raise ConfigError(f"control {name!r} is unknown; expected one of {', '.join(CONTROLS)}")
