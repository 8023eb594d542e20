"""Running figures of a training epoch, and the watch for NaN: which rows had it, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.errors import NumericError
from kdcache.training.batch import Batch

LOOK_EVERY = 16  # steps; adding up costs a step 50 microseconds and waits for an accelerator, so it is done in bunches


class EpochTally:
    """Mean loss, accuracy and agreement with the teacher over the rows of this process that count, in one epoch.

    Args:
        device: where the batches are.
        epoch: counted from 0, named in errors.
        look_every: steps between looks at the losses.
    """

    def __init__(self, device: torch.device, epoch: int, *, look_every: int = LOOK_EVERY) -> None:
        self._sums = torch.zeros(
            5, dtype=torch.float64, device=device
        )  # rows, loss, right, rows with teacher, agreeing
        self._waiting: list[tuple[Tensor, Tensor, Batch]] = []
        self._epoch = epoch
        self._look_every = look_every

    def add(self, loss: Tensor, logits: Tensor, batch: Batch) -> bool:
        """Count a batch; `loss` is (B,) nats or a batch value (), `logits` (B, K).

        Returns:
            Whether this call looked at the losses (every `look_every` steps).

        Raises:
            NumericError: a loss of this or the last few steps is NaN or infinite; names the rows.
        """
        self._waiting.append((loss.detach(), logits.detach().argmax(dim=1), batch))
        if len(self._waiting) < self._look_every:
            return False
        self.look()
        return True

    def look(self) -> None:
        """Add up what was counted since the last look.

        Raises:
            NumericError: a loss is not finite; names the rows of the first bad step.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        losses = torch.cat([loss if loss.ndim else loss.expand(len(batch.labels)) for loss, _, batch in waiting])
        if not bool(torch.isfinite(losses).all()):
            self._refuse(waiting)
        predicted = torch.cat([found for _, found, _ in waiting])
        right = predicted == torch.cat([batch.labels for _, _, batch in waiting])
        mixes = [
            batch.targets.mix for _, _, batch in waiting if batch.targets is not None and batch.targets.mix is not None
        ]
        if len(mixes) == len(waiting):  # a mixed row is right in the share of the label that was found
            weight = torch.cat([mix.weight for mix in mixes])
            right = torch.lerp(
                (predicted == torch.cat([mix.partner_label for mix in mixes])).float(), right.float(), weight
            )
        teacher = [batch.targets.index[:, 0] for _, _, batch in waiting if batch.targets is not None]
        agreeing = predicted == torch.cat(teacher) if len(teacher) == len(waiting) else None
        masks = [batch.mask for _, _, batch in waiting if batch.mask is not None]
        rows = losses.new_tensor(len(losses))
        if masks:  # all batches of a feed have one, or none has
            mask = torch.cat(masks)
            losses, right, rows = losses.masked_fill(~mask, 0.0), right.masked_fill(~mask, 0), mask.sum()
            agreeing = None if agreeing is None else agreeing & mask
        found = [rows, losses.double().sum(), right.sum()]  # finite losses of a diverging student overflow float32
        if agreeing is not None:
            found += [rows, agreeing.sum()]
        self._sums[: len(found)] += torch.stack([value.double() for value in found])

    def sums(self) -> Tensor:
        """(5,) float64: rows, loss, right, rows with a teacher, agreeing; to be added over processes."""
        return self._sums

    def shown(self) -> dict[str, float]:
        """Loss and accuracy up to the last look, for the progress bar."""
        rows, loss, right = self._sums[:3].tolist()
        return {"loss": loss / max(rows, 1), "accuracy": right / max(rows, 1)}

    def _refuse(self, waiting: list[tuple[Tensor, Tensor, Batch]]) -> None:
        loss, batch = next((loss, batch) for loss, _, batch in waiting if not bool(torch.isfinite(loss).all()))
        rows = batch.rows if not loss.ndim else batch.rows[(~torch.isfinite(loss)).cpu().numpy()]
        shown = ", ".join(map(str, rows[:8].tolist())) + (", ..." if len(rows) > 8 else "")
        kept = "The checkpoint of the epoch before is kept" if self._epoch else "No epoch was finished before"
        raise NumericError(
            f"epoch {self._epoch + 1}: the loss is NaN or infinite for {len(rows)} of {len(batch.rows)} rows of a "
            f"batch: rows {shown}; expected finite numbers. {kept}",
            hint="lower --lr or set a gradient norm with --clip-grad; always the same rows: kdcache verify STORE",
        )


def figures(sums: Tensor) -> dict[str, float | None]:
    """Epoch figures from the (5,) sums of all processes: train_loss (nats), train_accuracy, train_agreement."""
    rows, loss, right, with_teacher, agreeing = sums.tolist()
    return {
        "train_loss": loss / max(rows, 1),
        "train_accuracy": right / max(rows, 1),
        "train_agreement": agreeing / with_teacher if with_teacher else None,
    }
