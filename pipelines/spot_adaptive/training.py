"""One student of the recipe: spot-adaptive training to the end, with the store's checks, checkpoints and exact resume.

Store, data, student, order, views and evaluation are those of `distill` (its plan does them); the step is `sakd`'s.
What an epoch does is a pure function of the checkpoint before it: the policy, the adapters and CRD's memories are in
it, and routes are drawn from (seed, step).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.datasets.cards import load_card, open_dataset
from kdcache.distill import DistillConfig
from kdcache.distill.plan import DistillPlan
from kdcache.errors import ConfigError, IncompatibleError, NumericError
from kdcache.features.table import DISTILLERS
from kdcache.loader.inputs import example_shape
from kdcache.models.registry import build_model
from kdcache.models.weights import load_weights
from kdcache.progress import note
from kdcache.seeding import torch_seed_for
from kdcache.store.manifest_file import read_manifest
from kdcache.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, with_prefix, without_prefix
from kdcache.training.optim import learning_rate
from kdcache.training.processes import Processes, joined_processes
from kdcache.training.runs import RunFolder
from kdcache.views.sampling import view_for_epoch
from pipelines.spot_adaptive.network import SplitNetwork
from pipelines.spot_adaptive.routing import known_control
from pipelines.spot_adaptive.sakd import LIVE, SakdStep, StepFigures, Variant, check_variant
from pipelines.spot_adaptive.teachers import LiveTeacher, StoredTeacher, Teacher

OUTSIDE = "outside the cache promise: the teacher runs in every step of this student"


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """One student.

    Attributes:
        store: with the features the distiller needs; data_root: where its data set is.
        student: model name.
        method: a feature distiller, or ce or kd.
        control: adaptive, always, random or inverted.
        live_teacher: weights of the store's teacher; sakd-live for at, nst, vid and fitnet. "": from the store alone.
        epochs, batch_size, lr: of the paper's schedule: lr falls to a tenth at 5/8, 6/8 and 7/8 of the run.
        negatives: CRD's M.
        eval_split: rows to evaluate on after the last epoch.
        seed: initial weights, order and everything that is drawn.
        out: run folder; a run that is there is continued or, finished, read.
    """

    store: str
    data_root: str
    student: str
    method: str
    control: str = "adaptive"
    live_teacher: str = ""
    epochs: int = 240
    batch_size: int = 64
    lr: float = 0.05
    negatives: int = 16_384
    eval_split: str = "test"
    seed: int = 0
    out: str

    @property
    def variant(self) -> Variant:
        """What the combination is called: sakd, sakd-prefix (ours) or sakd-live."""
        if self.method not in LIVE:
            return "sakd"
        return "sakd-live" if self.live_teacher else "sakd-prefix"

    def is_of(self, result: Mapping[str, Any]) -> bool:
        """Whether a result.json is of this request, as far as a grid can be edited."""
        training = result.get("training", {})
        ran = {**result, **{name: training.get(name) for name in ("epochs", "batch_size", "lr")}}
        names = ("student", "epochs", "batch_size", "lr", "negatives", "eval_split")
        return all(ran.get(name) == getattr(self, name) for name in names)

    def distill_config(self) -> DistillConfig:
        """The same request to the plan of `distill`; ce there, because the loss is ours."""
        return DistillConfig(
            store=self.store,
            data_root=Path(self.data_root) if self.data_root else None,
            student=self.student,
            method="ce",
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer="sgd",
            lr=self.lr,
            momentum=0.9,
            weight_decay=5e-4,
            schedule="step",
            seed=self.seed,
            eval_split=self.eval_split,
            eval_every=self.epochs,
            out=self.out,
            resume=True,
        )


def train_student(config: StudentConfig, *, stop_after: int | None = None) -> dict[str, Any]:
    """Train a student, continue it, or read its result.

    Args:
        config: which.
        stop_after: leave after this many epochs in all, as a kill would; the result is then empty.

    Raises:
        ConfigError, IncompatibleError: the combination is not what its name would say, or the store lacks a feature.
        NumericError: the loss became NaN or infinite; the last checkpoint is kept.
    """
    known_control(config.control)
    if config.live_teacher and config.method not in LIVE:
        raise ConfigError(
            f"--live-teacher with {config.method}: expected one of {', '.join(LIVE)}",
            hint=f"leave it out: {config.method} needs no live teacher",
        )
    check_variant(config.method, config.variant)
    with joined_processes("auto") as processes, contextlib.closing(RunFolder(Path(config.out))) as folder:
        if processes.world_size > 1:
            raise ConfigError("spot_adaptive: found several processes; expected one", hint="leave torchrun out")
        asked = config.distill_config()
        if not read_manifest(config.store).views.ops:  # the features are of plain examples, whatever the card says
            asked = dataclasses.replace(asked, augment="none")
        plan = DistillPlan(asked, processes)
        decides = {**plan.decides(), **_ours(config)}
        finished = folder.result()
        folder.start(decides, resume=True)
        if finished is not None:
            return finished
        plan.prepare()
        run = _Run(config, plan, processes)
        run.restore(folder)
        while run.epochs_done < min(config.epochs, stop_after or config.epochs):
            run.train_epoch(folder)
        if run.epochs_done < config.epochs:
            return {}
        result = {**decides, **run.figures()}
        folder.save_module("last", run.student, {"recipe": "spot_adaptive", **decides, "epoch": config.epochs})
        folder.finish(result)
        return result


def _ours(config: StudentConfig) -> dict[str, Any]:
    """What decides the result beside the plan's; the plan's method is the loss without a teacher."""
    kept = {name: value for name, value in asdict(config).items() if name in ("method", "control", "negatives")}
    return {**kept, "variant": config.variant if config.method in DISTILLERS else "", "seed": config.seed}


class _Run:
    """Student, step and what is known so far."""

    def __init__(self, config: StudentConfig, plan: DistillPlan, processes: Processes) -> None:
        self._config, self._plan = config, plan
        self.student: nn.Module = plan.student.module.train()
        self._feed = plan.feed()
        self._evaluate: Callable[[nn.Module], Any] = plan.evaluate()
        self._views = plan.store.num_views
        example = self._example()
        network = SplitNetwork(self.student, example)
        self._step = SakdStep(
            network,
            self._teacher(example),
            config.method,
            example=example,
            num_rows=plan.store.num_rows,
            negatives=config.negatives,
            variant=config.variant,
            control=known_control(config.control),
            seed=config.seed,
        )
        self._device = processes.device
        self.epochs_done = 0
        self._seconds = 0.0
        self._history: list[dict[str, Any]] = []

    def _example(self) -> Tensor:
        inputs = next(iter(self._plan.feed().epoch(0))).inputs
        if not isinstance(inputs, Tensor):
            raise ConfigError("spot_adaptive: the store has token rows; expected images")
        return inputs[:2]

    def _teacher(self, example: Tensor) -> Teacher:
        config, store = self._config, self._plan.store
        spots = DISTILLERS[config.method].spots if config.method in DISTILLERS else ()
        if config.variant != "sakd-live":
            return StoredTeacher(store, spots, runs_on=config.variant == "sakd")
        manifest = store.manifest
        note(f"{config.out}: {config.method} with --live-teacher: {OUTSIDE}")
        data = manifest.dataset
        source = open_dataset(data.card, split=data.split, root=config.distill_config().data_root)
        built = build_model(
            manifest.teacher.source,
            num_classes=store.num_classes,
            input_shape=example_shape(source),
            data=load_card(data.card).preprocessing,
        )
        found = load_weights(built.module, Path(config.live_teacher)).state_digest
        if found != manifest.teacher.state_digest:
            raise IncompatibleError(
                f"{config.live_teacher}: weights {found[:12]}; the store's teacher has "
                f"{manifest.teacher.state_digest[:12]}",
                hint="name the weights that the store was dumped with",
            )
        built.module.to(example.device)
        return LiveTeacher(SplitNetwork(built.module, example), example, spots)

    def train_epoch(self, folder: RunFolder) -> None:
        """All steps of one epoch; log and checkpoint."""
        epoch, started = self.epochs_done, time.process_time()
        view = view_for_epoch(epoch, self._views)
        figures: list[StepFigures] = []
        self.student.train()
        with _seeded(torch_seed_for("training", self._config.seed, epoch, 0)):
            for step, batch in enumerate(self._feed.epoch(epoch)):
                number, rate = epoch * self._feed.steps + step, self._rate(epoch, step)
                assert isinstance(batch.inputs, Tensor)
                rows = torch.from_numpy(batch.rows).to(self._device)
                figures.append(self._step.step(batch.inputs, batch.labels, rows, view, number=number, lr=rate))
                if not math.isfinite(figures[-1].student_loss):
                    raise NumericError(
                        f"{folder.path}: epoch {epoch + 1}, step {step + 1}: the loss is {figures[-1].student_loss}; "
                        "the last checkpoint is kept",
                        hint="lower the lr of the grid",
                    )
        self._seconds += time.process_time() - started
        self.epochs_done = epoch + 1
        self._history.append({"epoch": epoch + 1, **_means(figures)})
        folder.forget_after(epoch)
        folder.log(epoch + 1, {**_flat(self._history[-1]), "lr": self._rate(epoch, 0), "seconds": self._seconds})
        tensors = {**with_prefix("model", self.student.state_dict()), **with_prefix("step", self._step.tensors())}
        numbers = {"seconds": self._seconds, "history": self._history}
        save_checkpoint(folder.state, Checkpoint(epochs_done=self.epochs_done, tensors=tensors, numbers=numbers))

    def restore(self, folder: RunFolder) -> None:
        """Continue from the newest checkpoint, if there is one."""
        checkpoint = load_checkpoint(folder.state)
        if checkpoint is None:
            return
        self.student.load_state_dict(without_prefix("model", checkpoint.tensors))
        self._step.load(without_prefix("step", checkpoint.tensors))
        self.epochs_done = checkpoint.epochs_done
        self._seconds = float(checkpoint.numbers["seconds"])
        self._history = list(checkpoint.numbers["history"])

    def figures(self) -> dict[str, Any]:
        """What result.json says: accuracy after the last epoch in [0, 1], processor seconds of training, shares."""
        evaluation = self._evaluate(self.student)
        return {
            "accuracy": evaluation.top1,
            "nll": evaluation.nll,
            "seconds": self._seconds,
            "epochs": self.epochs_done,
            "student_rows": self.epochs_done * self._plan.store.num_rows,
            "parameters": sum(parameter.numel() for parameter in self.student.parameters()),
            "history": self._history,
        }

    def _rate(self, epoch: int, step: int) -> float:
        return learning_rate(self._plan.training, epoch * self._feed.steps + step, self._feed.steps)


def _means(figures: list[StepFigures]) -> dict[str, Any]:
    """Means over an epoch's steps; shares by spot, the output last."""
    policy = [figure.policy_loss for figure in figures if figure.policy_loss is not None]
    shares = torch.tensor([figure.shares for figure in figures], dtype=torch.float64).mean(dim=0)
    return {
        "student_loss": sum(figure.student_loss for figure in figures) / len(figures),
        "policy_loss": sum(policy) / len(policy) if policy else None,
        "shares": shares.tolist(),
    }


def _flat(means: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: float(means[name]) for name in ("student_loss", "policy_loss") if means[name] is not None}
    return {**numbers, **{f"share_{place}": float(share) for place, share in enumerate(means["shares"])}}


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
