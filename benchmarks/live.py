"""Distillation from a live teacher, for comparison only: the product's own loop, the teacher evaluated in every step.

Everything is the product's (model, order, augmentation, optimizer, schedule, evaluation), except where targets come
from and what the loss is made of: the teacher's dense logits on the very pixels the student sees, and torch's own
KL divergence. Nothing is read from a store, and views are drawn anew from the seed instead of replayed.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kdcache.datasets.cards import open_dataset
from kdcache.distill import DistillConfig
from kdcache.loader.inputs import InputReader
from kdcache.targets.methods import find_method
from kdcache.teachers import LoadedTeacher, TeacherChoice, TeacherRequest
from kdcache.training.batch import Batch, TrainingFeed
from kdcache.training.loop import train
from kdcache.training.objective import Objective
from kdcache.training.processes import joined_processes
from kdcache.training.runs import RunFolder
from kdcache.training.setup import build_for_training, card_of, evaluation_on
from kdcache.views.policy import ViewPolicy
from kdcache.views.sampling import view_for_epoch


@dataclass(frozen=True, kw_only=True)
class LiveTeacher:
    """Which teacher, and which views both see.

    Attributes:
        source: MODEL.
        weights: its file.
        split: rows to train on.
        policy, view_seed, views: as in the dump that the store was made by.
    """

    source: str
    weights: Path
    split: str
    policy: str
    view_seed: int
    views: int


@dataclass(frozen=True, kw_only=True)
class LiveObjective(Objective):
    """(1 - alpha) CE + alpha T^2 KL(teacher || student) per row, from the teacher's dense logits of this step."""

    teacher: LoadedTeacher
    spent: list[float] = field(default_factory=list)

    def __call__(self, logits: Tensor, batch: Batch, epoch: float, *, second_logits: Tensor | None = None) -> Tensor:
        """(B,) nats; the seconds of the teacher's forward pass are kept in `spent`."""
        assert self.temperature is not None
        assert self.alpha is not None
        started = time.perf_counter()
        with torch.inference_mode():
            opinion = self.teacher.logits(batch.inputs)
        self.spent.append(time.perf_counter() - started)
        return dense_kd(logits, opinion.clone(), batch.labels, temperature=self.temperature, alpha=self.alpha)


def dense_kd(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float, alpha: float) -> Tensor:
    """(B,) nats: Hinton's loss from dense logits (B, K), written with torch alone."""
    target = (teacher / temperature).log_softmax(dim=1)
    soft = functional.kl_div((student / temperature).log_softmax(dim=1), target, reduction="none", log_target=True)
    hard = functional.cross_entropy(student, labels, reduction="none")
    return (1 - alpha) * hard + alpha * temperature**2 * soft.sum(dim=1)


def load_teacher(live: LiveTeacher, config: DistillConfig) -> LoadedTeacher:
    """The teacher as `dump-teacher` loads it."""
    source = open_dataset(config.dataset, split=live.split, root=config.data_root)
    choice = TeacherChoice(source=live.source, weights=str(live.weights))
    return TeacherRequest.resolve(choice, source).load(source, torch.device("cpu"))


def distill_live(config: DistillConfig, live: LiveTeacher) -> dict[str, Any]:
    """Train the student that `distill(config)` trains, from a live teacher; the same figures, and the teacher's time.

    Args:
        config: student, data, training settings, temperature and alpha; `store` and `method` play no part.
        live: the teacher and the views.
    """
    training = config.training({})
    card = card_of(config.dataset)
    teacher = load_teacher(live, config)
    with joined_processes(config.device) as processes:
        source = open_dataset(config.dataset, split=live.split, root=config.data_root)
        test = open_dataset(config.dataset, split=config.eval_split, root=config.data_root)
        student = build_for_training(config.student, source, card, seed=training.seed, device=processes.device)
        pixels = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8).to(torch.uint8)
        if not torch.equal(teacher.preprocessing.batch(pixels), student.preprocessing.batch(pixels)):
            raise ValueError("teacher and student normalise differently; this comparison feeds both the same inputs")
        policy = ViewPolicy.from_preset(live.policy, seed=live.view_seed)
        feed = TrainingFeed(
            InputReader(source, student.preprocessing, policy if policy.is_random else None, device=processes.device),
            torch.tensor(source.labels).to(processes.device),
            batch_size=training.batch_size,
            seed=training.seed,
            view_of_epoch=lambda epoch: view_for_epoch(epoch, live.views),
        )
        objective = LiveObjective(
            method=find_method("kd"), temperature=config.temperature, alpha=config.alpha, teacher=teacher
        )
        folder = RunFolder(Path(config.out))
        folder.start({"training": asdict(training), "teacher": teacher.spec.state_digest}, resume=config.resume)
        trained = train(
            student.module,
            feed,
            objective,
            evaluation_on(test, student.preprocessing, processes),
            training,
            folder,
            processes,
            resume=config.resume,
        )
    return {
        "accuracy": trained.last.top1,
        "nll": trained.last.nll,
        "ece": trained.last.ece,
        "train_loss": trained.train["train_loss"],
        "train_accuracy": trained.train["train_accuracy"],
        "seconds": trained.seconds,
        "teacher_seconds": sum(objective.spent),  # of this session: a resumed run counts from where it continued
        "test_rows": trained.last.rows,
    }
