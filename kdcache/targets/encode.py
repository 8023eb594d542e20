"""From a batch of teacher logits to what a store keeps: top k, label, and a few numbers about the rest.

Runs on the device of the logits, in float32 (float64 logits stay float64, for tests). It does not round to storage
precision and does not write; `dump` and `store` do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kdcache.errors import ConfigError, IncompatibleError, NumericError
from kdcache.targets.soft import LARGEST_STORED, LabelMix, SoftTargets
from kdcache.targets.topk_search import is_worth_searching, search_topk

ROWS_NAMED = 8
# Of log p worked on at a time, per thread of a CPU: larger falls out of the caches, smaller pays for more calls
# (K = 10,000: 67-73 us a row from 1.3 to 5 MB, 107 at 0.6, 119 at 0.3; the whole batch of 82 MB at once: 190).
PART_BYTES = 5 << 19


@dataclass(frozen=True, kw_only=True)
class EncodedBatch:
    """A teacher's opinion of B rows, as a store keeps it.

    Attributes:
        index: (B, k) int64, classes, most probable first.
        log_prob: (B, k) float32, log p at T=1 in nats, descending.
        tail: (B, 3) or (B, 4) float32, see `SoftTargets.tail`.
        label: (B,) int64, ground truth.
        label_log_prob: (B,) float32, log p of the label in nats.
        correct: (B,) bool, the most probable class is the label; of a mixed row, the label of the larger share.
        num_classes: K.
        sample_index, sample_count: (B, N) int64 or None, see `sampled.encode_sampled`.
        mix: the second labels of rows that mix two examples, with the teacher's log p of them; else None.
        features: what passed inside the teacher, (B, ...) each, under the names of the store's arrays.
        finite: (B,) bool, the row's logits are finite; only checked rows are worth keeping (`check_finite`).
    """

    index: Tensor
    log_prob: Tensor
    tail: Tensor
    label: Tensor
    label_log_prob: Tensor
    correct: Tensor
    num_classes: int
    finite: Tensor
    sample_index: Tensor | None = None
    sample_count: Tensor | None = None
    mix: LabelMix | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def label_nll(self) -> Tensor:
        """(B,) nats: the teacher's -log p of the label; of a mixed row, of both labels weighted by lambda."""
        if self.mix is None or self.mix.partner_log_prob is None:
            return -self.label_log_prob
        return -torch.lerp(self.mix.partner_log_prob, self.label_log_prob, self.mix.weight.to(self.label_log_prob))

    def columns(self) -> dict[str, Tensor]:
        """CPU tensors under the names of the store's arrays."""
        return {name: column.cpu() for name, column in self.device_columns().items()}

    def device_columns(self) -> dict[str, Tensor]:
        """As `columns`, where the batch is."""
        columns = {
            "topk_index": self.index,
            "topk_log_prob": self.log_prob,
            "tail": self.tail,
            "label": self.label,
            "label_log_prob": self.label_log_prob,
        }
        if self.sample_index is not None and self.sample_count is not None:
            columns |= {"sample_index": self.sample_index, "sample_count": self.sample_count}
        if self.mix is not None and self.mix.partner_log_prob is not None:
            columns["partner_label_log_prob"] = self.mix.partner_log_prob
        return columns | dict(self.features)

    def targets(self) -> SoftTargets:
        """The same opinion as the methods take it: a live teacher and a store meet here."""
        return SoftTargets(
            index=self.index,
            log_prob=self.log_prob,
            tail=self.tail,
            label=self.label,
            label_log_prob=self.label_log_prob,
            num_classes=self.num_classes,
            sample_index=self.sample_index,
            sample_count=self.sample_count,
            mix=self.mix,
        )


@torch.no_grad()
def encode_topk(
    logits: Tensor,
    labels: Tensor,
    *,
    topk: int,
    tail_numbers: int = 4,
    first_row: int = 0,
    mix: LabelMix | None = None,
    check: bool = True,
) -> EncodedBatch:
    """Keep the k most probable classes, the label, and statistics of the classes outside both.

    Args:
        logits: (B, K) of any floating dtype, finite.
        labels: (B,) integers in [0, K).
        topk: k, from 1 to K.
        tail_numbers: 3 for log mass, mean and variance of log p; 4 adds the log mass at T=2.
        first_row: number of the batch's first row, for messages only.
        mix: second labels and weights of rows that mix two examples.
        check: look at the logits now, which on a GPU waits for them; else `check_finite(batch.finite, ..)` must follow.

    Raises:
        ConfigError: k or the number of tail numbers is out of range.
        IncompatibleError: a label is outside [0, K).
        NumericError: a logit is NaN or infinite; the message names the rows.
    """
    classes = logits.shape[1]
    if not 1 <= topk <= classes:
        raise ConfigError(f"top-k: expected 1 to {classes} (the teacher's classes), found {topk}")
    if tail_numbers not in (3, 4):
        raise ConfigError(f"tail numbers: expected 3 or 4, found {tail_numbers}")
    _check_labels(labels, classes, first_row)  # where they are: usually the host, which then waits for nothing
    label = labels.to(device=logits.device, dtype=torch.int64, non_blocking=True)
    named, larger = label[:, None], label
    if mix is not None:
        mix = mix.each(lambda field: field.to(logits.device))
        named = torch.stack([label, mix.partner_label], dim=1)
        larger = torch.where(mix.weight < 0.5, mix.partner_label, label)
    parts = _row_parts(logits)
    shape = (max(part.stop - part.start for part in parts), classes)
    scratch = None
    if logits.device.type == "cpu":
        kind = torch.promote_types(logits.dtype, torch.float32)
        scratch = torch.empty(shape, dtype=kind), torch.empty(shape, dtype=kind)
    described = [_describe(logits[part], named[part], topk, tail_numbers, scratch) for part in parts]
    finite, head, index, named_log_prob, tail = (
        column[0] if len(parts) == 1 else torch.cat(column) for column in zip(*described, strict=True)
    )
    if check:
        check_finite(finite, first_row=first_row)
    if mix is not None:
        mix = replace(mix, partner_log_prob=named_log_prob[:, 1])
    return EncodedBatch(
        index=index,
        log_prob=head,
        tail=tail,
        label=label,
        label_log_prob=named_log_prob[:, 0],
        correct=index[:, 0] == larger,
        num_classes=classes,
        mix=mix,
        finite=finite,
    )


def check_finite(finite: Tensor, *, first_row: int = 0) -> None:
    """Refuse a batch with logits that are NaN or infinite.

    Args:
        finite: (B,) bool, of the encoded batch.
        first_row: number of the batch's first row, for the message.

    Raises:
        NumericError: naming the rows.
    """
    if not bool(finite.all()):
        raise NumericError(
            f"the teacher's logits: expected finite numbers, found NaN or infinity in {_name_rows(~finite, first_row)}",
            hint="check the weights and the input's scale, or run without reduced precision",
        )


def _row_parts(logits: Tensor) -> list[slice]:
    """The rows in parts that fit a processor's caches; on other devices, where every kernel has its price, one part.

    Every number of a row is computed from that row alone in an order of its own, so the parts do not change a bit. The
    one exception is torch's sum of a tensor of one row, which is shared by threads: no part has one row if B has more.
    """
    rows = logits.shape[0]
    count = 1
    if logits.device.type == "cpu":
        row_bytes = logits.shape[1] * max(4, logits.element_size())
        count = max(1, rows // max(2, torch.get_num_threads() * PART_BYTES // row_bytes))
    return [slice(rows * part // count, rows * (part + 1) // count) for part in range(count)]


def _describe(
    logits: Tensor, named: Tensor, topk: int, tail_numbers: int, scratch: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of some rows: (b,) bool finite, (b, k) log p and (b, k) classes of the head, (b, m) log p of the named, tail.

    Args:
        logits: (b, K).
        named: (b, m) int64, the label first.
        topk: k.
        tail_numbers: 3 or 4.
        scratch: on a CPU two (b or more, K) tensors that are overwritten; None elsewhere.
    """
    if scratch is None:
        low, high = torch.aminmax(logits, dim=1)  # NaN comes through; a third of the time of isfinite on every number
        finite = torch.isfinite(low) & torch.isfinite(high)
        log_prob = torch.log_softmax(_at_least_float32(logits), dim=1).clamp_(min=-LARGEST_STORED)
        head, index = log_prob.topk(topk, dim=1, sorted=True)
        spare = None
    else:
        log_prob, spare = (buffer[: len(logits)] for buffer in scratch)
        torch.log_softmax(_at_least_float32(logits), dim=1, out=log_prob)
        finite = _clamp(log_prob, logits)
        if is_worth_searching(log_prob, topk):
            head, index = search_topk(log_prob, topk, scratch=spare)
        else:
            head, index = log_prob.topk(topk, dim=1, sorted=True)
    named_log_prob = log_prob.gather(1, named)
    return finite, head, index, named_log_prob, _tail_statistics(log_prob, index, named[:, 0], tail_numbers, spare)


def _clamp(log_prob: Tensor, logits: Tensor) -> Tensor:
    """Clamp log p in place; (b,) bool, the row's logits are finite.

    A NaN or infinite logit makes some log p of its row NaN or -inf, so one look at the smallest log p usually answers
    both questions: on a CPU `aminmax` alone takes twice as long as log_softmax.
    """
    finite = log_prob.amin(dim=1) >= -LARGEST_STORED
    if not bool(finite.all()):
        log_prob.clamp_(min=-LARGEST_STORED)
        low, high = torch.aminmax(logits, dim=1)
        finite = torch.isfinite(low) & torch.isfinite(high)
    return finite


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _check_labels(labels: Tensor, classes: int, first_row: int) -> None:
    outside = (labels < 0) | (labels >= classes)
    if bool(outside.any()):
        raise IncompatibleError(
            f"labels: expected 0 to {classes - 1} (the teacher's classes), found "
            f"{int(labels[outside][0])} in {_name_rows(outside, first_row)}",
            hint="give a teacher that was trained for this data set's classes",
        )


def _name_rows(mask: Tensor, first_row: int) -> str:
    rows = [first_row + int(position) for position in mask.nonzero()[:, 0].tolist()]
    named = ", ".join(str(row) for row in rows[:ROWS_NAMED])
    return f"{len(rows)} row(s): {named}" + (", ..." if len(rows) > ROWS_NAMED else "")


def _tail_statistics(log_prob: Tensor, index: Tensor, label: Tensor, tail_numbers: int, spare: Tensor | None) -> Tensor:
    """(b, 3|4): log p outside the head in numbers, see `SoftTargets.tail`; an empty tail is -inf, 0, 0(, -inf).

    Overwrites `log_prob` and `spare`: a word model's rows are 40 kB and more, and temporaries took most of a dump's
    time. The head's k + 1 places are filled with what does not count instead of masking all K.
    """
    head = torch.cat([index, label[:, None]], dim=1)
    count = log_prob.shape[1] - index.shape[1] - (index != label[:, None]).all(dim=1).int()
    divisor = count.clamp(min=1)
    log_prob.scatter_(1, head, 0.0)
    mean = log_prob.sum(dim=1) / divisor
    # two passes: the one-pass form loses the variance of a tail around log p = -20 to cancellation in float32
    spread = torch.sub(log_prob, mean[:, None], out=spare).scatter_(1, head, 0.0).square_()
    variance = spread.sum(dim=1) / divisor
    log_prob.scatter_(1, head, -torch.inf)
    largest = log_prob.amax(dim=1).clamp_(min=-LARGEST_STORED)  # finite where there is no tail
    # sqrt(p / largest p); halving is exact, so this is (log_prob - largest) / 2 in one pass
    root = torch.add(-largest[:, None] / 2, log_prob, alpha=0.5, out=log_prob).exp_()
    half_mass = root.sum(dim=1).log_() + largest / 2
    log_mass = root.square_().sum(dim=1).log_() + largest
    numbers = [log_mass, mean, variance.clamp(max=LARGEST_STORED)]
    if tail_numbers == 4:
        numbers.append(half_mass)
    return torch.stack(numbers, dim=1)
