"""The folder of a run: config, metrics per epoch, weights, result. Knows files, not training.

config.json  metrics.jsonl  result.json  last.safetensors + last.json  best.safetensors  state/  tensorboard/  epochs/
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.tensorboard import SummaryWriter

from kdcache.canonical import to_json
from kdcache.errors import ConfigError, IncompatibleError, NotFoundError, OtherRequestError, ResourceError
from kdcache.models.weights import restate_weights, save_weights, write_atomically

STORE_SETTINGS = ("content_digest", "store_key", "store_root_digest")  # which store: said before what follows from it
DEFAULT_FOLDER = "kdcache-runs"


class RunFolder:
    """One run on disk; every file is complete or not there.

    Args:
        path: the folder.
        writes: False in processes other than the first, whose calls do nothing.
        keep_every: keep the weights of every n-th epoch under epochs/; 0 keeps none.

    Raises:
        ConfigError: `keep_every` is below 0.
    """

    def __init__(self, path: Path, *, writes: bool = True, keep_every: int = 0) -> None:
        if keep_every < 0:
            raise ConfigError(f"keep_every: expected 0 or more epochs, found {keep_every}")
        self.path = path
        self.writes = writes
        self.keep_every = keep_every
        self._board: SummaryWriter | None = None

    @property
    def state(self) -> Path:
        """Where checkpoints live."""
        return self.path / "state"

    def start(self, config: Mapping[str, Any], *, resume: bool) -> None:
        """Make the folder, or join the run that is in it.

        Args:
            config: what decides the run's result; a resumed run must have the same.
            resume: join an existing run.

        Raises:
            ConfigError: something is there and `resume` is not given, or it is no run.
            OtherRequestError: the run there has another config; names what differs.
        """
        kept = self.path / "config.json"
        if kept.is_file() and resume:
            check_same(self.path, read_document(kept), to_json(config))
            return
        if not self.writes:
            return
        self.require_new()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"{self.path}: cannot be created ({error})", hint="choose another --out") from error
        self._write("config.json", to_json(config))

    def require_new(self) -> None:
        """Refuse a path where something is: ConfigError."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            run = (self.path / "config.json").is_file()
            raise ConfigError(
                f"{self.path}: {'holds a run already' if run else 'exists and is not a run folder'}; "
                "expected a new folder",
                hint="choose another --out" + (", or --resume to continue it" if run else ""),
            )

    def log(self, epoch: int, figures: Mapping[str, float | int | None]) -> None:
        """Append one epoch's figures (epochs count from 1) to metrics.jsonl and TensorBoard."""
        if not self.writes:
            return
        shown = {name: value for name, value in figures.items() if value is not None}
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"epoch": epoch, **shown}) + "\n")
        if self._board is None:
            self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=epoch)
        for name, value in shown.items():
            self._board.add_scalar(name, value, epoch)

    def forget_after(self, epochs_done: int) -> None:
        """Drop the figures of later epochs than the checkpoint's: a resumed run computes them again."""
        path = self.path / "metrics.jsonl"
        if self.writes and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] <= epochs_done]
            write_atomically(path, "".join(kept).encode())

    def save_module(self, name: str, module: nn.Module, facts: Mapping[str, Any]) -> None:
        """Write NAME.safetensors, with `facts` as training provenance inside, and NAME.json beside it."""
        if self.writes:
            save_weights(module, self.path / f"{name}.safetensors", facts)
            self._write(f"{name}.json", facts)

    def keep_epoch(self, epoch: int, module: nn.Module, facts: Mapping[str, Any]) -> None:
        """Write epochs/epoch-NNNNN.safetensors and .json when `epoch` (from 1) is one of those to keep."""
        if self.writes and self.keep_every and epoch % self.keep_every == 0:
            try:
                (self.path / "epochs").mkdir(exist_ok=True)
            except OSError as error:
                raise ResourceError(f"{self.path / 'epochs'}: cannot be created ({error})") from error
            self.save_module(f"epochs/epoch-{epoch:05d}", module, facts)

    def restate(self, config: Mapping[str, Any], facts: Mapping[str, Any], *, without: str = "") -> None:
        """Replace config.json, and facts in the provenance of all saved weights, by what became known since.

        Args:
            config: the whole config.json.
            facts: names and values that replace those in the weights' provenance.
            without: a name that goes.
        """
        kept = [self.path / f"{name}.safetensors" for name in ("last", "best")]
        kept += sorted((self.path / "epochs").glob("epoch-*.safetensors"))
        for path in kept if self.writes else []:
            sidecar = path.with_suffix(".json")
            if path.is_file() and sidecar.is_file():
                stated = {**read_document(sidecar), **facts}
                stated.pop(without, None)
                restate_weights(path, stated)
                self._write(str(sidecar.relative_to(self.path)), stated)
        self._write("config.json", config)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write result.json: the run is complete."""
        self._write("result.json", result)

    def close(self) -> None:
        """Close the TensorBoard file."""
        if self._board is not None:
            self._board.close()
            self._board = None

    def result(self) -> dict[str, Any] | None:
        """The result of a finished run, or None."""
        path = self.path / "result.json"
        return read_document(path) if path.is_file() else None

    def _write(self, name: str, document: Mapping[str, Any]) -> None:
        if self.writes:
            content = json.dumps(to_json(document), indent=2, sort_keys=True) + "\n"
            write_atomically(self.path / name, content.encode())


def read_document(path: Path) -> dict[str, Any]:
    """A JSON object from a run folder.

    Raises:
        NotFoundError: no such file.
        IncompatibleError: not a JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(
            f"{path}: no such file; expected a run folder's", hint="kdcache distill makes one"
        ) from None
    except (ValueError, OSError) as error:
        raise IncompatibleError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(document, dict):
        raise IncompatibleError(f"{path}: expected a JSON object, found {type(document).__name__}")
    return document


def default_run_folder(name: str, *, resume: bool) -> Path:
    """A folder under kdcache-runs/ for a run of this name: the newest one to resume, else one not used yet."""
    root = Path(DEFAULT_FOLDER)
    number, path = 1, root / name
    while path.exists():
        following = root / f"{name}-{number + 1}"
        if resume and not following.exists():
            return path
        number, path = number + 1, following
    return path


def check_same(folder: Path, kept: Mapping[str, Any], asked: Mapping[str, Any], inside: str = "") -> None:
    """Raise OtherRequestError when a request is not the one a run was started with; names what differs."""
    for name in sorted({*kept, *asked}, key=lambda name: (name not in STORE_SETTINGS, name)):
        before, now = kept.get(name), asked.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            check_same(folder, before, now, f"{inside}{name}.")
        elif before != now:
            if name in STORE_SETTINGS and not inside:
                raise OtherRequestError(
                    f"{folder}: the run was started from another store: {name} {str(before)[:16]}, now {str(now)[:16]}",
                    hint="--store STORE as the run was started, or another --out",
                )
            raise OtherRequestError(
                f"{folder}: the run was started with {inside}{name} = {before!r}, now it is {now!r}",
                hint="give the options the run was started with, or another --out",
            )
