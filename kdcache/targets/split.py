"""Head and tail of teacher and student at one temperature: the shared first half of every sparse loss.

The head is S = top k and label (or the top k alone); everything outside it is one number per row. Both sides are
distributions over buckets: a column per named class, then one for the tail. Nothing here builds a (B, K) tensor for the
teacher. The divergences are in `divergence.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kdcache.targets.head_sums import HOLE, bucket_logits, head_sums
from kdcache.targets.soft import SoftTargets
from kdcache.targets.tail import log_power_sum, tail_of, tail_with_label


@dataclass(frozen=True, kw_only=True)
class TeacherSplit:
    """The teacher at T over h named classes and the rest.

    Attributes:
        index: (B, h) int64 classes.
        log_bucket: (B, h + 1) log p^T in nats of the named classes and of the tail; (B, h) at k = K, where there is no
            tail. About HOLE in a column that repeats the label and in an empty tail.
        bucket: p^T of the same; 0 there.
        repeated: (B,) bool, the last named class is the label and stands among the top k as well; None: nowhere.
        label: (B,) int64.
        count: (B,) float, classes in the tail.
        empty: (B,) bool, the tail is empty.
        log_partition: (B,) log of the sum of p^(1/T) over all classes.
    """

    index: Tensor
    log_bucket: Tensor
    bucket: Tensor
    repeated: Tensor | None
    label: Tensor
    count: Tensor
    empty: Tensor
    log_partition: Tensor

    @property
    def has_tail(self) -> bool:
        """Whether there is a column for the tail: k < K."""
        return self.bucket.shape[1] > self.index.shape[1]

    @property
    def named(self) -> Tensor:
        """(B, h) bool; False marks a column that repeats the label and counts for nothing."""
        named = torch.ones_like(self.index, dtype=torch.bool)
        if self.repeated is not None:
            named[:, -1] = ~self.repeated
        return named

    @property
    def is_label(self) -> Tensor:
        """Bool, shaped as `bucket`: the bucket of the label, where it is named."""
        found = (self.index == self.label[:, None]).logical_and_(self.named)
        return functional.pad(found, (0, 1)) if self.has_tail else found

    @property
    def log_prob(self) -> Tensor:
        """(B, h) log p^T in nats; 0 where not named."""
        return self.log_bucket[:, : self.index.shape[1]].masked_fill(~self.named, 0.0)

    @property
    def prob(self) -> Tensor:
        """(B, h) p^T; 0 where not named."""
        return self.bucket[:, : self.index.shape[1]]

    @property
    def log_tail(self) -> Tensor:
        """(B,) log pi^T; 0 where the tail is empty."""
        return self.log_bucket[:, -1].masked_fill(self.empty, 0.0)

    @property
    def tail_prob(self) -> Tensor:
        """(B,) pi^T; 0 where the tail is empty."""
        return self.bucket[:, -1] if self.has_tail else torch.zeros_like(self.log_partition)


@dataclass(frozen=True, kw_only=True)
class StudentSplit:
    """The student at T over the teacher's split.

    Attributes:
        scaled: logits / T, shaped as the teacher's buckets: the named classes, then logsumexp over the tail; HOLE in a
            column that repeats the label and in an empty tail.
        log_bucket: log q^T of the same, normalised over all K classes.
        rest_scaled: (B,) sum of logits / T over the tail; None unless asked for, or at k = K.
    """

    scaled: Tensor
    log_bucket: Tensor
    rest_scaled: Tensor | None

    @property
    def log_partition(self) -> Tensor:
        """(B,) logsumexp of logits / T over all K classes."""
        return self.scaled[:, 0] - self.log_bucket[:, 0]  # the first column is the teacher's first choice: never a hole


def split_teacher(targets: SoftTargets, temperature: float | Tensor, *, label_named: bool = True) -> TeacherSplit:
    """The teacher's named classes and tail mass at T, normalised over all K classes.

    Args:
        targets: B rows.
        temperature: T > 0, a float or a tensor that broadcasts to (B,).
        label_named: S = top k and label (k + 1 columns below k = K); else S = top k and the label joins the tail.

    The answer for a plain number T is kept with the targets.
    """
    if isinstance(temperature, Tensor) or targets.log_prob.requires_grad:
        return _split_teacher(targets, temperature, label_named)
    key = (float(temperature), label_named)
    found: TeacherSplit | None = targets.splits.get(key)
    if found is None:
        found = _split_teacher(targets, temperature, label_named)
        if not torch.is_inference_mode_enabled():  # such tensors could not take part in a later backward pass
            targets.splits[key] = found
    return found


def _split_teacher(targets: SoftTargets, temperature: float | Tensor, label_named: bool) -> TeacherSplit:
    complete = targets.topk == targets.num_classes
    tail = tail_of(targets) if label_named or complete else tail_with_label(targets)
    index, b, repeated = targets.index, 1.0 / temperature, None
    powered = targets.log_prob * (b[:, None] if isinstance(b, Tensor) and b.ndim == 1 else b)
    empty = tail.count == 0
    if not complete:
        columns = [powered]
        if label_named:
            index = torch.cat([index, targets.label[:, None]], dim=1)
            repeated = targets.label_in_topk
            # masked after the product: the gradient of b * -inf would be NaN
            columns.append((targets.label_log_prob * b).masked_fill(repeated, HOLE)[:, None])
        columns.append(log_power_sum(tail, temperature).masked_fill(empty, HOLE)[:, None])
        powered = torch.cat(columns, dim=1)
    log_bucket = powered.log_softmax(dim=1)
    return TeacherSplit(
        index=index,
        log_bucket=log_bucket,
        bucket=log_bucket.exp(),
        repeated=repeated,
        label=targets.label,
        count=tail.count,
        empty=empty,
        log_partition=powered[:, 0] - log_bucket[:, 0],
    )


def split_student(
    logits: Tensor, teacher: TeacherSplit, temperature: float | Tensor, *, with_rest: bool = False
) -> StudentSplit:
    """The student's log-probabilities on the teacher's split.

    The tail mass is logsumexp over the complement of the head, never log(1 - sum), which loses every digit once the
    head holds all but 1e-7 of the mass.

    Args:
        logits: (B, K) float32 or float64.
        teacher: the split to follow.
        temperature: T > 0; a tensor is differentiated too.
        with_rest: whether `rest_scaled` is wanted.
    """
    rest: Tensor | None = None
    if not teacher.has_tail:  # the named classes are all there is
        column = temperature[:, None] if isinstance(temperature, Tensor) and temperature.ndim == 1 else temperature
        scaled = logits.gather(1, teacher.index) / column
    else:
        index, repeated, empty = teacher.index, teacher.repeated, teacher.empty
        if isinstance(temperature, Tensor):
            scaled, rest = bucket_logits(logits, index, temperature, repeated=repeated, empty=empty)
        else:
            scaled, rest = head_sums(logits, index, temperature, repeated=repeated, empty=empty, with_rest=with_rest)
    return StudentSplit(scaled=scaled, log_bucket=scaled.log_softmax(dim=1), rest_scaled=rest)


def apart(log_bucket: Tensor, is_label: Tensor) -> tuple[Tensor, Tensor]:
    """Log p_y and log(1 - p_y), each (B,) nats; the second is summed over the other buckets, not subtracted.

    Args:
        log_bucket: (B, h + 1) of a teacher or a student.
        is_label: the teacher's, of the same shape.
    """
    log_label = log_bucket.masked_fill(~is_label, 0.0).sum(dim=1)
    return log_label, log_bucket.masked_fill(is_label, HOLE).logsumexp(dim=1)


def others(log_bucket: Tensor, is_label: Tensor) -> Tensor:
    """Log-probabilities given i != y, shaped as `log_bucket`; about HOLE on the label and in holes."""
    return log_bucket.masked_fill(is_label, HOLE).log_softmax(dim=1)


def log_label_probs(targets: SoftTargets, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """Log p_y^T and log(1 - p_y^T), each (B,) nats; the second is summed over the other classes, not subtracted."""
    teacher = split_teacher(targets, temperature)
    return apart(teacher.log_bucket, teacher.is_label)


def student_label_log_probs(logits: Tensor, label: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """Log q_y^T and log(1 - q_y^T) of the student, each (B,) nats, differentiable, without log(1 - q)."""
    if isinstance(temperature, Tensor):
        scaled, _ = bucket_logits(logits, label[:, None], temperature)
    else:
        scaled, _ = head_sums(logits, label[:, None], temperature)
    log_label, log_others = scaled.log_softmax(dim=1).unbind(dim=1)
    return log_label, log_others
