"""What long work says on stderr: a bar on a terminal, a plain line every few seconds elsewhere, nothing under `-q`.

Results never go through here (they are for stdout). No torch, no click; any layer may report.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm

LINE_SECONDS = 10.0  # a log file of a day-long run stays under 9,000 lines
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence (or restore) notes and progress of this process; errors and results are not affected."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether notes and progress are silenced."""
    return _quiet


def note(message: str) -> None:
    """Print one line for people on stderr, unless silenced."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)  # noqa: T201 - the one place that prints


def counted(number: int, thing: str) -> str:
    """`1 view`, `2 views`, `1,000 views`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


class Progress:
    """Counts units of work and shows rate and remaining time.

    Args:
        total: units in all.
        unit: what is counted, for example "rows".
        label: what is going on, for example "epoch 3/30".
        keep: leave a finished bar on the terminal.
    """

    def __init__(self, total: int, unit: str, *, label: str = "", keep: bool = True) -> None:
        self._total = total
        self._unit = unit
        self._label = label
        self._done = 0
        self._started = time.monotonic()
        self._last_line = self._started
        on_terminal = not _quiet and sys.stderr.isatty()
        self._bar = tqdm(total=total, unit=unit, desc=label, leave=keep, file=sys.stderr) if on_terminal else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def done(self) -> int:
        """Units counted so far."""
        return self._done

    def update(self, count: int, fields: Mapping[str, float] | None = None) -> None:
        """Count `count` more units; `fields` (for example loss and accuracy) are shown beside the rate."""
        self._done += count
        if self._bar is not None:
            if fields:
                self._bar.set_postfix({name: f"{value:.4g}" for name, value in fields.items()}, refresh=False)
            self._bar.update(count)
            return
        now = time.monotonic()
        if not _quiet and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            note(self.line(now - self._started, fields or {}))

    def line(self, seconds: float, fields: Mapping[str, float]) -> str:
        """The plain line after `seconds` of work."""
        rate = self._done / max(seconds, 1e-9)
        left = (self._total - self._done) / rate if rate > 0 else float("inf")
        shown = "".join(f" {name} {value:.4g}" for name, value in fields.items())
        start = f"{self._label}: " if self._label else ""
        pace = f"{rate:,.0f} {self._unit}/s, {duration(left)} left"
        return f"{start}{self._done:,}/{self._total:,} {self._unit} ({pace}){shown}"

    def close(self) -> None:
        """Finish the bar; harmless when called twice."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def duration(seconds: float) -> str:
    """Seconds as people read them: "8 s", "3 min 20 s", "2 h 5 min"."""
    if seconds == float("inf"):
        return "unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
