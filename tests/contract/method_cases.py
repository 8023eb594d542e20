"""Batches and dense references that the contract of every method is checked on; float64 throughout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kdcache.targets.encode import encode_topk
from kdcache.targets.sampled import draw_uniforms, encode_sampled
from kdcache.targets.soft import SoftTargets

CLASSES = 12


@dataclass(frozen=True)
class Batch:
    """Teacher and student logits (B, K) and labels, with the label inside and outside the teacher's top k."""

    teacher: Tensor
    student: Tensor
    label: Tensor

    def targets(self, topk: int = CLASSES, tail_numbers: int = 4) -> SoftTargets:
        found = encode_topk(self.teacher, self.label, topk=topk, tail_numbers=tail_numbers).targets()
        index, count = samples(self)
        return replace(found, sample_index=index, sample_count=count)


def batch(seed: int = 0, rows: int = 8, classes: int = CLASSES, scale: float = 3.0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    teacher = scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    student = 2.0 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    label = teacher.argsort(dim=1, descending=True)[torch.arange(rows), torch.arange(rows) * 2 % classes]
    return Batch(teacher, student, label)


def samples(of: Batch) -> tuple[Tensor, Tensor]:
    """Fifty draws per row."""
    uniforms = draw_uniforms(np.arange(len(of.teacher)), seed=9, view=0, draws=50)
    return encode_sampled(of.teacher, torch.from_numpy(uniforms))


@dataclass(frozen=True)
class Columns:
    """A store in memory, as `prepare` reads it."""

    parts: tuple[SoftTargets, ...]
    class_weight: Tensor | None = None

    @property
    def num_classes(self) -> int:
        return self.parts[0].num_classes

    def class_mean(self, temperature: float) -> Tensor | None:
        return None

    def batches(self) -> Iterator[SoftTargets]:
        yield from self.parts


def columns(of: Batch, topk: int = CLASSES, *, weights: bool = True) -> Columns:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(of.teacher.shape[1], 7, generator=generator) if weights else None
    return Columns((of.targets(topk),), weight)


def gradient(loss: Tensor, at: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss.sum(), at)
    return found
