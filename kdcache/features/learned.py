"""The parts of feature distillers that have parameters or a memory: FitNet's regressor, CC's embedding, VID, CRD.

Their parameters belong to the student's optimizer. The teacher's features get no gradient; CRD's and CC's embedding of
them does, as in the papers' code.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcache.features.maps import same_size
from kdcache.seeding import torch_seed_for


class Regressor(nn.Module):
    """1x1 convolution, batch norm and ReLU from the student's channels to the teacher's (FitNet).

    Source: Romero et al. 2015, arXiv:1412.6550, section 2.2, as a 1x1 convolution (recalled from the benchmark code).
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(student, teacher, 1), nn.BatchNorm2d(teacher), nn.ReLU())

    def forward(self, features: Tensor) -> Tensor:
        """(B, student, H, W) -> (B, teacher, H, W)."""
        out: Tensor = self.layers(features)
        return out


class Embedding(nn.Module):
    """A linear map of flattened features to a common width; unit vectors when asked for (CRD), plain ones else (CC)."""

    def __init__(self, inputs: int, width: int = 128, *, unit: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        self.unit = unit

    def forward(self, features: Tensor) -> Tensor:
        """(B, ...) with `inputs` values a row -> (B, width)."""
        out: Tensor = self.linear(features.flatten(1))
        return functional.normalize(out, dim=1) if self.unit else out


class VariationalLoss(nn.Module):
    """VID: the teacher's map is Gaussian around what three 1x1 convolutions make of the student's.

        L = mean 1/2 ((m(f_S) - f_T)^2 / v_c + log v_c),  v_c = log(1 + exp(a_c)) + 1e-5, learned, 5 at the start

    Not zero at its minimum: for a perfect prediction it falls with log v without end, as the paper's does.

    Args:
        student, teacher: channels.

    Source: Ahn et al. 2019, arXiv:1904.05835, equations 5 and 6 (recalled); hidden channels as many as the teacher's
    and the starting variance as in the benchmark code (read).
    """

    FLOOR, START = 1e-5, 5.0

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        widths = (student, teacher, teacher, teacher)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 1, bias=False), nn.ReLU()]
        self.mean = nn.Sequential(*layers[:-1])
        self.scale = nn.Parameter(torch.full((teacher,), math.log(math.expm1(self.START - self.FLOOR))))

    @property
    def variance(self) -> Tensor:
        """(teacher channels,) v_c."""
        return functional.softplus(self.scale) + self.FLOOR

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Maps (B, C, H, W) of both -> () nats per value, up to a constant."""
        student, teacher = same_size(student, teacher)
        variance = self.variance[None, :, None, None]
        loss: Tensor = ((self.mean(student) - teacher).square() / variance + variance.log()).mean() / 2
        return loss


class ContrastiveLoss(nn.Module):
    """CRD: a row's student embedding must be told from noise by the same row's teacher embedding, and the reverse.

        L = - E log h(s_i, t_i) - sum over M drawn rows j of log(1 - h(s_i, t_j)), plus the same with s and t swapped
        h = e / (e + M / N),  e = exp(s . t / tau) / Z,  Z = N mean exp(.) over the first batch

    Negatives come from a memory of N embeddings a side, which follows with momentum 1/2; drawn rows may hit the row
    itself, as in the paper's code. State: the memories, Z and the number of batches so far, all in `state_dict`: what
    is drawn is a pure function of the seed and that number.

    Args:
        student, teacher: values a row of the features.
        num_rows: N.
        negatives: M; 16384 in the paper.
        seed: of the memories and the draws.

    Source: Tian et al. 2020, arXiv:1910.10699, equations 10 to 13 (recalled), in the form of the benchmark
    code (crd/, read); tau 0.07, width 128.
    """

    def __init__(
        self,
        student: int,
        teacher: int,
        *,
        num_rows: int,
        negatives: int = 16_384,
        width: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.embed_student = Embedding(student, width, unit=True)
        self.embed_teacher = Embedding(teacher, width, unit=True)
        self.negatives, self.temperature, self.momentum, self.num_rows = negatives, temperature, momentum, num_rows
        self._seed = seed
        bound = math.sqrt(3 / width)  # rows of about unit length
        for name in ("memory_student", "memory_teacher"):
            draws = torch.Generator().manual_seed(torch_seed_for(f"crd-{name}", seed))
            self.register_buffer(name, torch.rand(num_rows, width, generator=draws) * (2 * bound) - bound)
        self.register_buffer("partition", torch.zeros(2))  # Z of each side, 0 until the first batch
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.memory_student: Tensor
        self.memory_teacher: Tensor
        self.partition: Tensor
        self.batches: Tensor

    def forward(self, student: Tensor, teacher: Tensor, rows: Tensor) -> Tensor:
        """Features (B, ...) of both and their row numbers (B,) int64 -> () nats; the memories move on."""
        if len(rows) == 0:
            return student.sum() * 0
        ours, theirs = self.embed_student(student), self.embed_teacher(teacher.detach())
        draws = torch.Generator().manual_seed(torch_seed_for("crd-negatives", self._seed, int(self.batches)))
        drawn = torch.randint(self.num_rows, (len(rows), self.negatives), generator=draws).to(rows.device)
        self.batches += 1
        chosen = torch.cat([rows[:, None], drawn], dim=1)
        loss = self._side(ours, self.memory_teacher, chosen, 0) + self._side(theirs, self.memory_student, chosen, 1)
        with torch.no_grad():
            for memory, fresh in ((self.memory_student, ours), (self.memory_teacher, theirs)):
                mixed = self.momentum * memory[rows] + (1 - self.momentum) * fresh
                memory[rows] = functional.normalize(mixed, dim=1)
        return loss

    def contrast(self, anchors: Tensor, memory: Tensor, chosen: Tensor) -> Tensor:
        """(B, n) exp(a . m / tau): unit vectors (B, width) against rows (B, n) of a memory (N, width)."""
        return torch.exp(torch.einsum("bd,bnd->bn", anchors, memory[chosen]) / self.temperature)

    def _side(self, anchors: Tensor, memory: Tensor, chosen: Tensor, side: int) -> Tensor:
        score = self.contrast(anchors, memory, chosen)
        if float(self.partition[side]) == 0:
            self.partition[side] = score.detach().mean() * self.num_rows
        score = score / self.partition[side].clone()  # the other side may still be set in place
        noise = self.negatives / self.num_rows
        matching = torch.log(score[:, 0] / (score[:, 0] + noise))
        others = torch.log(noise / (score[:, 1:] + noise)).sum(dim=1)
        return -(matching + others).mean()
