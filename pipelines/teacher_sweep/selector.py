"""What is known of a teacher before any student is trained, and the cheap selector that chooses by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.teacher_sweep.sweep import ROLES, Sweep, Teacher

WITHIN = 0.02  # the selector looks at teachers this close to the best validation accuracy
STRUCTURE = "between_within"  # of class structure, the metric that does not also fall as the teacher becomes sure


@dataclass(frozen=True, kw_only=True)
class Row:
    """One teacher.

    Attributes:
        teacher: its place in the sweep.
        val_accuracy, train_accuracy: on the validation rows and on the rows it was trained on, in [0, 1].
        label_doubt: mean of 1 - p_y over the stored rows, T = 1.
        metrics: at the students' temperature; plain: at T = 1.
    """

    teacher: Teacher
    val_accuracy: float
    train_accuracy: float
    label_doubt: float
    metrics: Mapping[str, float]
    plain: Mapping[str, float]

    @property
    def name(self) -> str:
        """Of the teacher."""
        return self.teacher.name


def rows_of(sweep: Sweep, results: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """The teachers of a sweep from the results of its cells, in the sweep's order."""
    rows = []
    for one in sweep.teachers:
        measured = results[f"metrics-{one.name}"]
        rows.append(
            Row(
                teacher=one,
                val_accuracy=float(results[f"teacher-b{one.batch_size}"]["val_accuracy"][str(one.epochs)]),
                train_accuracy=float(results[f"store-{one.name}"]["train_accuracy"]),
                label_doubt=float(measured["label_doubt"]),
                metrics=measured["by_temperature"][f"{sweep.temperature:g}"],
                plain=measured["by_temperature"]["1"],
            )
        )
    return rows


def select(rows: Sequence[Row]) -> Row:
    """The cheap selector: most class structure among the teachers close to the best validation accuracy."""
    best = max(row.val_accuracy for row in rows)
    return max((row for row in rows if row.val_accuracy >= best - WITHIN), key=lambda row: row.metrics[STRUCTURE])


def by_role(rows: Sequence[Row]) -> dict[str, Row]:
    """The selector's choice, the most accurate on the validation rows, and the longest trained with small batches."""
    longest = max(row.teacher.epochs for row in rows)
    candidates = (
        select(rows),
        max(rows, key=lambda row: row.val_accuracy),
        min((row for row in rows if row.teacher.epochs == longest), key=lambda row: row.teacher.batch_size),
    )
    return dict(zip(ROLES, candidates, strict=True))


def under_test(rows: Sequence[Row], tested: Sequence[str]) -> list[tuple[Row, str]]:
    """Teachers put to the distillation hypothesis, each once, with the roles they have."""
    roles = by_role(rows)
    whom = rows if "all" in tested else [roles[name] for name in tested]
    unique = {row.name: row for row in whom}
    return [(row, ", ".join(role for role, other in roles.items() if other is row)) for row in unique.values()]
