"""What a distillation method is: a name, what it needs, its options, and a loss on one batch.

The losses live in the modules beside this one, the table in `methods.py`. A method holds no state: what it learned from
a store, and parameters it trains, are in the `MethodContext` that `prepare` returns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from kdcache.errors import ConfigError, IncompatibleError
from kdcache.targets.mixed import HARD_PART, OnMixedViews, mixed_cross_entropy, seen_from_partner
from kdcache.targets.options import Option, checked, checked_alpha, checked_temperature
from kdcache.targets.soft import SoftTargets


class StoreColumns(Protocol):
    """What `prepare` reads from a store, whatever holds it.

    Attributes:
        num_classes: K.
        class_weight: (K, D) float tensor, the teacher's last layer, or None.
    """

    @property
    def num_classes(self) -> int:
        """K."""
        ...

    @property
    def class_weight(self) -> Tensor | None:
        """(K, D) or None."""
        ...

    def class_mean(self, temperature: float) -> Tensor | None:
        """(K, K) float32 mean p^T of each class's rows, where the store keeps it for this T; else None."""
        ...

    def batches(self) -> Iterator[SoftTargets]:
        """One pass over the rows of a view, in order, in batches of any size."""
        ...


class Similarity(Protocol):
    """Class similarities R: rows of a (K, K) stochastic matrix."""

    def rows(self, label: Tensor) -> Tensor:
        """(B, K) float32 rows R[y], each summing to 1, on the device of `label`."""
        ...


@dataclass(frozen=True, kw_only=True)
class MethodContext:
    """What a method carries from step to step.

    Attributes:
        similarity: R for kd-sim and the prior tail.
        module: trained parameters of the method itself (ctkd's temperature); give them to the optimizer, move them with
            the student and save them in its checkpoints.
        epoch: position in training, in epochs; methods with a warm-up read it (None: past every warm-up).
        facts: numbers found by `prepare` that a run should record (for example the beta that was solved for).
    """

    similarity: Similarity | None = None
    module: nn.Module | None = None
    epoch: float | None = None
    facts: Mapping[str, float] | None = None

    def at_epoch(self, epoch: float) -> MethodContext:
        """The same context at another position in training."""
        return replace(self, epoch=epoch)


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """One batch as the losses take it: everything checked, the student in at least float32.

    Attributes:
        student: (B, K) logits.
        labels: (B,) int64.
        temperature, alpha: checked; 1.0 and 0.0 for methods that have none.
        options: every option of the method.
        context: what `prepare` returned, or an empty one.
        second: (B, K) student logits of the rows' second view and its targets, for two-view methods.
    """

    student: Tensor
    soft: SoftTargets | None
    labels: Tensor
    temperature: float
    alpha: float
    options: Mapping[str, object]
    context: MethodContext
    second: tuple[Tensor, SoftTargets] | None = None

    @property
    def targets(self) -> SoftTargets:
        """The soft targets, which `Method` made sure are there."""
        assert self.soft is not None
        return self.soft

    def number(self, name: str) -> float:
        """A numeric option."""
        value = self.options[name]
        assert isinstance(value, float)
        return value

    def text(self, name: str) -> str:
        """An option that is a word."""
        return str(self.options[name])

    def similarity(self) -> Similarity:
        """R from the context.

        Raises:
            ConfigError: the method was called without what `prepare` returns.
        """
        if self.context.similarity is None:
            raise ConfigError(
                "this method needs class similarities, found no context",
                hint="context = method.prepare(store, options=...), then pass context=context",
            )
        return self.context.similarity

    def similarity_rows(self) -> Tensor:
        """(B, K) float32 rows of R for the labels; on mixed rows those of both labels, weighted by lambda."""
        similarity, mix = self.similarity(), self.targets.mix
        own = similarity.rows(self.targets.label)
        if mix is None:
            return own
        return torch.lerp(similarity.rows(mix.partner_label), own, mix.weight[:, None].to(own.dtype))

    def hard(self) -> Tensor:
        """(B,) cross-entropy with the label, smoothed by the option `hard_smoothing` where the method has it.

        On mixed rows it is lambda times that of the label plus 1 - lambda times that of the partner's label.
        """
        smoothing = self.number("hard_smoothing") if "hard_smoothing" in self.options else 0.0
        mix = None if self.soft is None else self.soft.mix
        return mixed_cross_entropy(self.student, self.labels, mix, smoothing=smoothing)

    def blend(self, divergence: Tensor, temperature: float | None = None) -> Tensor:
        """(1 - alpha) * hard + alpha * T^2 * divergence; (B,) nats."""
        t = self.temperature if temperature is None else temperature
        soft = divergence * (self.alpha * t * t)
        return soft if self.alpha == 1 else soft + (1 - self.alpha) * self.hard()


Loss = Callable[[LossInputs], Tensor]
Prepare = Callable[[StoreColumns, Mapping[str, object], float], MethodContext]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the method table.

    Attributes:
        name: as typed after `--method`.
        summary: one line.
        equation: plain-text formula; its long form is in docs/methods.md under the same name.
        source: paper, or "ours".
        status: "standard", "code", "algebra", "recalled" or "ours": how sure we are of the form.
        needs: store fields it reads, as the store names its arrays; "class_weight" and "view 2" among them.
        options: its options.
        exact_below_full_k: the loss from a store of k < K equals the loss from all K classes.
        default_temperature, default_alpha: None where the method has no such knob.
        default_topk: classes per row when none are asked for; None takes all that are stored.
        loss: the loss function.
        make_context: what `prepare` runs, if anything.
        per_row: the loss is (B,); else one value () for the batch.
        on_mixed: what the method does with rows that mix two examples.
    """

    name: str
    summary: str
    equation: str
    source: str
    status: str
    loss: Loss
    needs: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    exact_below_full_k: bool = True
    default_temperature: float | None = None
    default_alpha: float | None = None
    default_topk: int | None = None
    make_context: Prepare | None = None
    per_row: bool = True
    on_mixed: OnMixedViews = HARD_PART

    def __call__(
        self,
        student_logits: Tensor,
        targets: SoftTargets | None,
        labels: Tensor,
        *,
        temperature: float | None = None,
        alpha: float | None = None,
        options: Mapping[str, object] | None = None,
        context: MethodContext | None = None,
        mask: Tensor | None = None,
        second: tuple[Tensor, SoftTargets] | None = None,
    ) -> Tensor:
        """The loss of one batch, differentiable in the student's logits.

        Args:
            student_logits: (B, K), any floating dtype; the loss is computed in at least float32.
            targets: B rows from a store or from `encode_topk`; None for methods that need nothing of them.
            labels: (B,) int64.
            temperature: T > 0, by default the method's own.
            alpha: weight of the soft part in [0, 1], by default the method's own.
            options: values for `self.options`; an unknown name is refused.
            context: what `prepare` returned, for methods that have one.
            mask: (B,) bool; rows that are False (padding) give 0 and no gradient, whatever they hold.
            second: student logits (B, K) and targets of a second view, for two-view methods.

        Returns:
            (B,) nats, or () for a method that sees the batch as a whole (`per_row` is False).

        Raises:
            ConfigError: a value is out of range, or targets or context are missing.
            IncompatibleError: student and targets have different classes or rows, or the rows are mixed and the method
                is not defined on them.
        """
        values = self.checked_options(options or {})
        if targets is not None and targets.mix is not None:
            self.on_mixed.check(self.name, values)
        self._check_batch(student_logits, targets, labels)
        student = student_logits if student_logits.dtype == torch.float64 else student_logits.float()
        if mask is not None and self.per_row:
            student, labels = torch.where(mask[:, None], student, 0.0), torch.where(mask, labels, 0)
        elif mask is not None:  # statistics over the batch must not see padding at all
            student, labels = student[mask], labels[mask]
            targets = None if targets is None else targets.select(mask)
            second = None if second is None else (second[0][mask], second[1].select(mask))
        inputs = LossInputs(
            student=student,
            soft=targets,
            labels=labels,
            temperature=self.checked_temperature(temperature, targets),
            alpha=self.checked_alpha(alpha),
            options=values,
            context=context or MethodContext(),
            second=None if second is None else (second[0].to(student.dtype), second[1]),
        )
        with torch.autocast(device_type=student.device.type, enabled=False):
            loss = self._of_each_label(inputs)
        if mask is not None and self.per_row:
            loss = torch.where(mask, loss, 0.0)
        return loss

    def _of_each_label(self, inputs: LossInputs) -> Tensor:
        """The loss; on mixed rows of a method built on the label, both labels' losses weighted by lambda."""
        mix = None if inputs.soft is None else inputs.soft.mix
        if mix is None or inputs.soft is None or not self.on_mixed.each_label:
            return self.loss(inputs)
        own = replace(inputs.soft, mix=None)
        # without needs a loss reads nothing of the teacher, so nothing about the partner has to be known either
        other = seen_from_partner(inputs.soft) if self.needs else replace(own, label=mix.partner_label)
        first = self.loss(replace(inputs, soft=own))
        second = self.loss(replace(inputs, soft=other, labels=mix.partner_label))
        return torch.lerp(second, first, mix.weight.to(first.dtype))

    def prepare(
        self,
        store: StoreColumns,
        *,
        options: Mapping[str, object] | None = None,
        temperature: float | None = None,
    ) -> MethodContext:
        """What the method needs once per store, before the first step; cheap for methods that need nothing.

        Raises:
            ConfigError: an option or the temperature is out of range.
            IncompatibleError: the store lacks a field; the hint names the dump-teacher option that keeps it.
        """
        values = self.checked_options(options or {})
        t = self.checked_temperature(temperature, None)
        return MethodContext() if self.make_context is None else self.make_context(store, values, t)

    def checked_options(self, given: Mapping[str, object]) -> dict[str, object]:
        """Every option of the method with its given or default value.

        Raises:
            ConfigError: an unknown name (the nearest are named) or a value out of range.
        """
        return checked(f"method {self.name}", self.options, given)

    def checked_temperature(self, given: float | None, targets: SoftTargets | None) -> float:
        """T to use: the given one or the method's own.

        Raises:
            ConfigError: not positive and finite, or the method has no temperature.
        """
        if given is None:
            return 1.0 if self.default_temperature is None else self.default_temperature
        if self.default_temperature is None:
            raise ConfigError(f"method {self.name} has no temperature, found {given!r}", hint="leave it out")
        value = checked_temperature(f"method {self.name}", given)
        if value < 1 and targets is not None and targets.topk < targets.num_classes:
            warnings.warn(
                f"temperature {value:g} is below 1: from k={targets.topk} of {targets.num_classes} classes the tail is "
                "only bounded there (errors of 0.01 nats and more)",
                stacklevel=3,
            )
        return value

    def checked_alpha(self, given: float | None) -> float:
        """Alpha to use: the given one or the method's own.

        Raises:
            ConfigError: outside [0, 1], or the method has its own weights instead.
        """
        if given is None:
            return 0.0 if self.default_alpha is None else self.default_alpha
        if self.default_alpha is None:
            known = ", ".join(option.name for option in self.options) or "no options"
            raise ConfigError(f"method {self.name} has no alpha, found {given!r}", hint=f"it has: {known}")
        return checked_alpha(f"method {self.name}", given)

    def _check_batch(self, student: Tensor, targets: SoftTargets | None, labels: Tensor) -> None:
        if student.ndim != 2 or labels.shape != student.shape[:1]:
            raise IncompatibleError(
                f"method {self.name}: expected logits (B, K) and labels (B,), found {tuple(student.shape)} and "
                f"{tuple(labels.shape)}"
            )
        if targets is None:
            if self.needs:
                raise ConfigError(
                    f"method {self.name} needs {', '.join(self.needs)} of a store, found no targets",
                    hint="give store.targets(rows), or use ce",
                )
        elif targets.num_classes != student.shape[1] or len(targets) != len(student):
            raise IncompatibleError(
                f"method {self.name}: the targets are {len(targets)} rows of {targets.num_classes} classes, the "
                f"student's logits {len(student)} rows of {student.shape[1]}"
            )
