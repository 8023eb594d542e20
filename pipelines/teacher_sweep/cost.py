"""What a sweep would cost, before anything runs: arithmetic of its models, bytes of its stores. No data is read.

Operations are counted on the real models (a multiplication and an addition are two); a step of training is three
forward passes. Hours come from one stated number, the operations a second that the machine really does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kdcache.datasets.cards import load_card
from kdcache.datasets.row_range import parse_split
from kdcache.errors import ConfigError
from pipelines.partial_kd.cost import TRAINING, forward_operations, known_shape
from pipelines.teacher_sweep.cells import ARMS
from pipelines.teacher_sweep.sweep import Sweep

HOUR = 3600.0
PER_ROW = 16  # bytes beside the classes: label, its log p, tail, digest, ledger


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a sweep would cost.

    Attributes:
        teachers, dumps, students: operations; live: of the teachers, had the students asked them in every step.
        runs: of teachers; stores: one for each kept epoch, and one for each permuted control; count: students at most.
        rows: of a store; row_bytes: of one row before compression.
        rate: operations a second.
    """

    name: str
    teachers: float
    dumps: float
    students: float
    live: float
    runs: int
    stores: int
    count: int
    rows: int
    row_bytes: int
    rate: float

    def __str__(self) -> str:
        size = self.stores * self.rows * self.row_bytes
        total = self.teachers + self.dumps + self.students
        return "\n".join(
            (
                f"{self.name}",
                f"  rate      {self.rate / 1e12:g} TFLOP/s assumed",
                f"  teachers  {self._hours(self.teachers)} for {self.runs} runs",
                f"  dumps     {self._hours(self.dumps)}: {self.rows:,} rows, each teacher once",
                f"  bytes     {size / 1e9:,.2f} GB at most in {self.stores} stores ({self.row_bytes} a row)",
                f"  students  {self._hours(self.students)} for {self.count} students at most",
                f"  in all    {self._hours(total)}",
                f"  live      {self._hours(self.live)} of teachers, had the students asked them in every step",
            )
        )

    def _hours(self, operations: float) -> str:
        return f"{operations / self.rate / HOUR:,.2f} h ({operations / 1e15:,.2f} PFLOP)"


def cost_of(sweep: Sweep) -> Cost:
    """The cost of a sweep, from its settings alone.

    Raises:
        ConfigError: neither `rows` nor `num_rows` says how many rows there are.
    """
    _, start, stop = parse_split(sweep.rows)
    if stop is None and sweep.num_rows is None:
        raise ConfigError(f"grid.toml, {sweep.scale}.{sweep.name}: {sweep.rows!r} does not say how many rows it has")
    rows = (stop if stop is not None else int(sweep.num_rows or 0)) - start
    card = known_shape(load_card(sweep.dataset), split=sweep.rows, root=sweep.data_root)
    teacher, student = (_operations(sweep, str(settings["model"])) for settings in (sweep.teacher, sweep.student))
    tested = len(sweep.teachers) if "all" in sweep.tested else len(sweep.tested)
    asking = len(sweep.teachers) * len(sweep.seeds) + tested * 2 * len(sweep.tested_seeds)  # permuted, kd-pt
    asking += tested * len({*sweep.tested_seeds} - {*sweep.seeds}) + (
        len(sweep.student_lr) if len(sweep.student_lr) > 1 else 0
    )
    count = asking + (tested + 1) * len(sweep.tested_seeds)  # ls, ce
    epochs = int(sweep.student["epochs"])
    return Cost(
        name=f"{sweep.name} ({sweep.scale}): {len(sweep.teachers)} teachers, {len(ARMS)} arms for {tested}",
        teachers=TRAINING * teacher * rows * max(sweep.epochs) * len(sweep.batch_sizes),
        dumps=teacher * rows * len(sweep.teachers),
        students=TRAINING * student * rows * epochs * count,
        live=teacher * rows * epochs * asking,
        runs=len(sweep.batch_sizes),
        stores=len(sweep.teachers) + tested,
        count=count,
        rows=rows,
        row_bytes=card.num_classes * (3 if card.num_classes <= 255 else 4) + PER_ROW,
        rate=sweep.tflops * 1e12,
    )


def _operations(sweep: Sweep, model: str) -> float:
    """Operations of one forward pass of one row."""
    card = known_shape(load_card(sweep.dataset), split=sweep.rows, root=sweep.data_root)
    side = int(sweep.small["side"]) if sweep.small else 0
    shape = (card.image_shape[0], side, side) if side else card.image_shape
    return forward_operations(model, replace(card, image_shape=shape))
