"""The training loop: plain PyTorch, one optimizer step per batch, one checkpoint per epoch.

Order, augmentation, learning rate and dropout are pure functions of (seed, epoch, step), so an epoch depends only on
the checkpoint before it: a run killed anywhere and resumed ends with the same bits on a CPU. How a loss becomes new
weights, also over several processes, is in `update`.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.canonical import to_json
from kdcache.devices import autocast, warn_if_amp_is_slow
from kdcache.errors import NumericError
from kdcache.metrics import Evaluation
from kdcache.models.language import Segment
from kdcache.progress import Progress, note
from kdcache.seeding import torch_seed_for
from kdcache.training.batch import Batch, Feed
from kdcache.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, with_prefix, without_prefix
from kdcache.training.config import TrainingConfig
from kdcache.training.objective import Objective
from kdcache.training.optim import learning_rate
from kdcache.training.processes import Processes, average_buffers
from kdcache.training.rescaling_sample import RescalingSample
from kdcache.training.runs import RunFolder
from kdcache.training.tally import EpochTally, figures
from kdcache.training.update import Update

SMALL_MODEL = 50_000  # parameters


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        last: evaluation after the last epoch; the headline.
        best: the best evaluation by top-1 (token rows: by perplexity); optimistic, because it was chosen on the rows it
            is measured on.
        best_epoch: counted from 1.
        train: figures of the last epoch's training rows (loss, accuracy, agreement with the teacher, gradient
            rescaling).
        seconds: time in training steps alone, over all epochs and sessions.
        steps: optimizer steps in all.
        epochs: epochs that ran; fewer than asked for when the run stopped early.
    """

    last: Evaluation
    best: Evaluation
    best_epoch: int
    train: dict[str, float | None]
    seconds: float
    steps: int
    epochs: int

    def figures(self) -> dict[str, Any]:
        """What result.json says about the run, the last epoch first."""
        last, best = self.last, self.best
        return {
            "accuracy": last.top1,
            "accuracy_best": best.top1,
            "best_epoch": self.best_epoch,
            "epochs_run": self.epochs,
            "top5": last.top5,
            "nll": last.nll,
            "ece": last.ece,
            **({} if last.perplexity is None else {"perplexity": last.perplexity}),
            "calibration": to_json(last.calibration),
            "calibration_best": to_json(best.calibration),
            "test_rows": last.rows,
            "train_loss": self.train.get("train_loss"),
            "train_accuracy": self.train.get("train_accuracy"),
            "seconds": self.seconds,
            "steps": self.steps,
        }


def train(
    model: nn.Module,
    feed: Feed,
    objective: Objective,
    evaluate: Callable[[nn.Module], Evaluation],
    config: TrainingConfig,
    folder: RunFolder,
    processes: Processes,
    *,
    evaluated_on: str = "test",
    resume: bool = False,
    before_epoch: Callable[[int], None] | None = None,
    provenance: dict[str, object] | None = None,
) -> TrainingResult:
    """Train a model, keeping checkpoints, metrics and weights in a run folder.

    Args:
        model: on the device; changed in place.
        feed: batches of every epoch.
        objective: the loss.
        evaluate: figures of a model on the evaluation rows, the same in every process.
        config: how to train.
        folder: a started run folder.
        processes: this process among all.
        evaluated_on: what these rows are called in what is printed; metrics.jsonl names their figures test_... always.
        resume: continue after the newest checkpoint in the folder, if there is one.
        before_epoch: called with the epoch (from 0) before it begins; its time does not count as training.
        provenance: written into the saved weights beside epoch and accuracy.

    Raises:
        NumericError: a loss is NaN or infinite; the checkpoint of the epoch before is kept.
        ResourceError: a checkpoint could not be written.
    """
    run = _Run(model, feed, objective, config, processes, evaluated_on)
    if resume:
        run.restore(folder)
    folder.forget_after(run.epochs_done)
    warn_if_amp_is_slow(config.amp, processes.device)
    with _threads_for(model, processes.device), contextlib.closing(folder):
        while not run.is_over:
            epoch = run.epochs_done
            if before_epoch is not None:
                before_epoch(epoch)
            trained = run.train_epoch(epoch)
            evaluation = None
            if (epoch + 1) % config.eval_every == 0 or epoch + 1 == config.epochs:
                evaluation = evaluate(run.shown_model)
            run.finish_epoch(epoch, trained, evaluation, folder, provenance or {})
    return run.result()


class _Run:
    """Model, optimizer and what is known so far; `restore` and `finish_epoch` are its only contact with disk."""

    def __init__(
        self,
        model: nn.Module,
        feed: Feed,
        objective: Objective,
        config: TrainingConfig,
        processes: Processes,
        evaluated_on: str,
    ) -> None:
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self._model = model.to(memory_format=layout) if config.channels_last else model
        self._layout = layout
        self._forward: nn.Module | Callable[..., Tensor] = torch.compile(model) if config.compile else model
        self._feed = feed
        self._objective = objective
        self._config = config
        self._processes = processes
        self._evaluated_on = evaluated_on
        self._update = Update(model, objective.module, config, processes)
        self.epochs_done = 0
        self._last: Evaluation | None = None
        self._best: Evaluation | None = None
        self._best_epoch = 0
        self._train: dict[str, float | None] = {}
        self._seconds = 0.0

    @property
    def shown_model(self) -> nn.Module:
        """What is evaluated and saved: the averaged weights where there is an average."""
        return self._update.average.module if self._update.average is not None else self._model

    @property
    def is_over(self) -> bool:
        """All epochs ran, or the best is too long ago; a function of the checkpoint, so that a resumed run agrees."""
        waited = self.epochs_done - self._best_epoch
        stops = self._config.early_stop > 0 and self._evaluated and waited >= self._config.early_stop
        return stops or self.epochs_done >= self._config.epochs

    @property
    def _evaluated(self) -> bool:
        """Whether the last epoch that ran was evaluated."""
        return self.epochs_done > 0 and self.epochs_done % self._config.eval_every == 0

    def train_epoch(self, epoch: int) -> dict[str, float | None]:
        """All steps of one epoch; figures over all processes."""
        started = time.perf_counter()
        tally = EpochTally(self._processes.device, epoch)
        sample = RescalingSample(self._feed.steps, self._objective.target_temperature)
        label = f"epoch {epoch + 1}/{self._config.epochs}"
        self._model.train()
        with (
            _seeded(torch_seed_for("training", self._config.seed, epoch, self._processes.rank), self._processes.device),
            Progress(self._feed.num_rows, "rows", label=label, keep=False) as progress,
        ):
            for step, batch in enumerate(self._feed.epoch(epoch)):
                looked = self._step(epoch, step, batch, tally, sample)
                progress.update(batch.global_rows, tally.shown() if looked else None)
        tally.look()
        average_buffers(self._model, self._processes)
        trained = {**figures(self._processes.sum(tally.sums())), **sample.figures()}
        self._seconds += time.perf_counter() - started
        return trained

    def _step(self, epoch: int, step: int, batch: Batch, tally: EpochTally, sample: RescalingSample) -> bool:
        steps = self._feed.steps
        looked, sampled = False, sample.wants(step, batch)
        for piece in batch.pieces(self._config.accumulate):
            loss, logits = self._loss(piece, epoch + step / steps, keep_gradient=sampled)
            total = loss.sum() if loss.ndim else loss * piece.counted
            self._update.backward(total / piece.divisor)  # over pieces and processes: the mean of the whole batch
            if sampled:
                sample.add(logits, piece, scale=self._update.loss_scale or 1.0)
            looked |= tally.add(loss, logits, piece)
        self._update.apply(learning_rate(self._config, epoch * steps + step, steps), epoch * steps + step)
        return looked

    def _loss(self, piece: Batch, position: float, *, keep_gradient: bool) -> tuple[Tensor, Tensor]:
        logits = self._logits(piece.inputs)
        if keep_gradient:
            logits.retain_grad()
        second = None if piece.second is None else self._logits(piece.second[0])
        return self._objective(logits, piece, position, second_logits=second), logits

    def _logits(self, inputs: Tensor | Segment) -> Tensor:
        if self._config.channels_last and isinstance(inputs, Tensor) and inputs.ndim == 4:
            inputs = inputs.to(memory_format=self._layout)
        with autocast(self._config.amp, self._processes.device):
            logits: Tensor = self._forward(inputs).float()
        return logits

    def finish_epoch(
        self,
        epoch: int,
        trained: dict[str, float | None],
        evaluation: Evaluation | None,
        folder: RunFolder,
        provenance: dict[str, object],
    ) -> None:
        """Log, save weights, and checkpoint last: a kill before it repeats the epoch with the same outcome."""
        finite = all(bool(torch.isfinite(parameter).all()) for parameter in self._update.parameters)
        if not finite or (evaluation is not None and not math.isfinite(evaluation.nll)):
            what = f"NLL on {self._evaluated_on} is" if finite else "weights are"
            raise NumericError(
                f"epoch {epoch + 1}: the {what} NaN or infinite after the epoch's last steps; the checkpoint of the "
                "epoch before is kept",
                hint="lower --lr or set a gradient norm with --clip-grad",
            )
        self.epochs_done = epoch + 1
        self._train = trained
        shown = dict(trained)
        if evaluation is not None:
            self._last = evaluation
            shown |= {f"test_{name}": value for name, value in evaluation.scalars().items()}
        rate = learning_rate(self._config, epoch * self._feed.steps, self._feed.steps)
        shown["loss_scale"] = self._update.loss_scale
        folder.log(epoch + 1, {**shown, "lr": rate, "seconds": self._seconds})
        facts = {**provenance, "epoch": epoch + 1, "figures": {k: v for k, v in shown.items() if v is not None}}
        folder.save_module("last", self.shown_model, facts)
        folder.keep_epoch(epoch + 1, self.shown_model, facts)
        if evaluation is not None and (self._best is None or evaluation.better_than(self._best)):
            self._best, self._best_epoch = evaluation, epoch + 1
            folder.save_module("best", self.shown_model, facts)
        if folder.writes:
            save_checkpoint(folder.state, self._checkpoint())
        self._processes.wait()
        if evaluation is not None:
            note(
                f"epoch {epoch + 1}/{self._config.epochs}: loss {trained['train_loss']:.4f}, "
                f"{self._evaluated_on} {evaluation}, {self._seconds:.1f} s"
            )

    def _checkpoint(self) -> Checkpoint:
        update, scalars = self._update.pack()
        tensors = {**with_prefix("model", self._model.state_dict()), **update}
        if self._objective.module is not None:
            tensors |= with_prefix("method", self._objective.module.state_dict())
        numbers = {
            **scalars,
            "last": asdict(self._last) if self._last else None,
            "best": asdict(self._best) if self._best else None,
            "best_epoch": self._best_epoch,
            "train": self._train,
            "seconds": self._seconds,
        }
        return Checkpoint(epochs_done=self.epochs_done, tensors=tensors, numbers=numbers)

    def restore(self, folder: RunFolder) -> None:
        """Continue from the newest checkpoint in the folder, if there is one."""
        checkpoint = load_checkpoint(folder.state)
        if checkpoint is None:
            note(f"{folder.path}: no checkpoint yet; starting from the first epoch")
            return
        tensors, numbers = checkpoint.tensors, checkpoint.numbers
        self._model.load_state_dict(without_prefix("model", tensors))
        self._update.unpack(tensors, numbers)
        if self._objective.module is not None:
            self._objective.module.load_state_dict(without_prefix("method", tensors))
        self._last = Evaluation.from_json(numbers["last"]) if numbers["last"] else None
        self._best = Evaluation.from_json(numbers["best"]) if numbers["best"] else None
        self._best_epoch = numbers["best_epoch"]
        self._train = dict(numbers["train"])
        self._seconds = numbers["seconds"]
        self.epochs_done = checkpoint.epochs_done
        note(f"{folder.path}: continuing after epoch {self.epochs_done}")

    def result(self) -> TrainingResult:
        """The run's figures; the last epoch is always evaluated."""
        assert self._last is not None
        assert self._best is not None
        return TrainingResult(
            last=self._last,
            best=self._best,
            best_epoch=self._best_epoch,
            train=self._train,
            seconds=self._seconds,
            steps=self.epochs_done * self._feed.steps,
            epochs=self.epochs_done,
        )


@contextlib.contextmanager
def _threads_for(model: nn.Module, device: torch.device) -> Iterator[None]:
    """One thread for models too small to share: a 7,000-parameter student trains 7 times faster on a busy machine.

    A rule of the model alone, so that a resumed run adds its floats up in the same order.
    """
    before = torch.get_num_threads()
    if device.type == "cpu" and sum(parameter.numel() for parameter in model.parameters()) < SMALL_MODEL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global generators (dropout draws from them) seeded inside, as they were outside."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
