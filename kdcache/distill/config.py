"""What `distill` is asked and what it answers. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcache.training.config import TrainingOptions


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainingOptions):
    """One student to train; "" and None mean the data card's default, then the method's own.

    Attributes:
        store: path or URL of a sealed store (with `follow` of a growing one); "" is the only one under kdcache-store/.
        student: built-in name, torchvision:NAME, timm:NAME or file.py:factory.
        method: a row of the method table.
        topk: classes used per row; asked for, it must be stored. Not given: the method's own, at most what is stored.
        temperature, alpha: of the method.
        options: the method's options.
        dataset: card name, card.toml or file.py:factory; "" is what the store names.
        eval_split: rows to evaluate on.
        eval_store: a store over the evaluation rows, to measure agreement with the teacher there.
        views: how many of the stored views to train on, the first ones; None is all.
        view_order: "cycle" (epoch e shows view e mod V) or "random" (a fresh order of all V views every V epochs).
        follow: the store may be unfinished, and even missing: each epoch waits for its views, the end for the sealing.
        follow_timeout: seconds to wait while nobody writes the store.
        allow_view_drift: train even if the store's canary views come out with other pixels here.
    """

    store: str = ""
    student: str = ""
    method: str = "kd-topk"
    topk: int | None = None
    temperature: float | None = None
    alpha: float | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    dataset: str = ""
    data_root: Path | None = None
    eval_split: str = ""
    eval_store: str = ""
    views: int | None = None
    view_order: str = "cycle"
    allow_view_drift: bool = False
    follow: bool = False
    follow_timeout: float = 600.0


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run; the same numbers are in the folder's result.json.

    Attributes:
        folder: the run folder.
        figures: see `result.json` in docs/quickstart.md: accuracy (last epoch), accuracy_best, nll, ece, agreement,
            seconds (training steps only), method, seed, topk, temperature, alpha, store_root_digest ...
        reused: the run was finished already; nothing was trained.
    """

    folder: Path
    figures: Mapping[str, Any]
    reused: bool = False

    def to_json(self) -> dict[str, Any]:
        """The figures with the folder, for `--json`."""
        return {"out": str(self.folder), "reused": self.reused, **self.figures}
