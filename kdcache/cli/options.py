"""Options every command shares: verbosity, the configuration file, the environment, and a few value types.

Precedence is flag > environment (KDCACHE_COMMAND_OPTION, then KDCACHE_OPTION) > file > default; click does the merging,
this module feeds it. The file itself is read in `config_file`.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

import click

from kdcache.cli.config_file import apply_config_file

HELP_WIDTH = 110

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Settings:
    """What the shared options said; lives in the click context of one invocation."""

    verbose: bool = False
    quiet: bool = False


class Option(click.Option):
    """An option that also reads KDCACHE_NAME, after the command's own KDCACHE_COMMAND_NAME."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """The first variable that is set and not empty."""
        value = super().resolve_envvar_value(ctx)
        if value is None and self.allow_from_autoenv and self.name:
            value = os.environ.get(f"KDCACHE_{self.name.upper()}") or None
        return value


def _set_verbosity(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    settings = ctx.ensure_object(Settings)
    if value and param.name is not None:
        setattr(settings, param.name, True)
    if settings.verbose and settings.quiet:
        raise click.UsageError("-v and -q exclude each other", ctx)
    if value and settings.quiet:
        _silence_progress(True)


def _silence_progress(quiet: bool) -> None:
    from kdcache.progress import set_quiet  # pulls in tqdm, which help does without

    set_quiet(quiet)


def _read_config(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    if value is not None:
        apply_config_file(ctx, value)


def settings_options() -> list[click.Parameter]:
    """-v, -q and --config, given to the group and to every command so that they may stand on either side."""
    return [
        Option(
            ["--config"],
            type=click.Path(path_type=Path),
            metavar="FILE.toml",
            is_eager=True,  # its values become the defaults of the options that are parsed after it
            expose_value=False,
            callback=_read_config,
            help="Read options from a TOML file: top-level keys for all commands, [COMMAND] tables for one.",
        ),
        Option(
            ["-v", "--verbose"],
            is_flag=True,
            expose_value=False,
            callback=_set_verbosity,
            help="Say more; show the traceback of an unexpected error.",
        ),
        Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_set_verbosity,
            help="No progress and no notes; only the result and errors.",
        ),
    ]


class Command(click.Command):
    """A sub-command with the shared options and options that read the environment."""

    def __init__(self, name: str | None, *, params: list[click.Parameter] | None = None, **attributes: Any) -> None:
        super().__init__(name, params=[*(params or []), *settings_options()], **attributes)


def subcommand(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Decorator: a sub-command of `kdcache` under a name."""
    return click.command(
        name, cls=Command, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
    )


def option(
    *names: str,
    help: str,
    default: Any = None,
    kind: Any = None,
    metavar: str | None = None,
    is_flag: bool = False,
    multiple: bool = False,
) -> Callable[[F], F]:
    """Decorator: an option with its unit or form in `metavar` and one sentence of help."""
    flag: dict[str, Any] = {"is_flag": True} if is_flag else {}
    if default == "":  # "not given"; the help says in words what happens then
        flag["show_default"] = False
    return click.option(
        *names, cls=Option, help=help, default=default, type=kind, metavar=metavar, multiple=multiple, **flag
    )


def json_option(function: F) -> F:
    """Decorator: `--json`, one JSON document on stdout instead of the text."""
    return option("--json", "as_json", is_flag=True, default=False, help="Print exactly one JSON document.")(function)


def workers_options(here: str = "Processes here that share the blocks.") -> Callable[[F], F]:
    """Decorator: `--workers` and `--dask`, who shares the blocks of a store; `here` says what a worker is."""
    dask = option("--dask", metavar="ADDRESS", default="", help="Scheduler of a Dask cluster that shares the blocks.")
    workers = option("--workers", kind=click.IntRange(min=1), default=1, metavar="N", help=here)
    return lambda function: workers(dask(function))


class TopK(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """A count of classes, at least 1, or the word `all`."""

    name = "K"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """An int, or "all"."""
        if value == "all":
            return value
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = 0
        if number < 1:
            self.fail(f"expected a whole number of at least 1, or 'all'; found {value!r}", param, ctx)
        return number


class CommaList(click.ParamType):  # type: ignore[type-arg]
    """One value or several with commas between them: `ce,kd` or `0,1,2`; a TOML file may give a list."""

    def __init__(self, kind: type[int] | type[str]) -> None:
        self.kind = kind
        self.name = "INT,.." if kind is int else "NAME,.."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """The values in the order given, without repeats.

        A repeat would train the same student twice into the same folder.
        """
        parts: Iterable[Any] = value if isinstance(value, list | tuple) else str(value).split(",")
        try:
            values = tuple(dict.fromkeys(self.kind(str(part).strip()) for part in parts))
        except ValueError:
            self.fail(f"expected whole numbers with commas between them, found {value!r}", param, ctx)
        if not values or "" in values:
            self.fail(f"expected values with commas between them, found {value!r}", param, ctx)
        return values


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """One number or several with commas between them: `1,2.5,4`; a TOML file may give a list or a number."""

    name = "NUMBER,.."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """The numbers in the order given."""
        parts: Iterable[Any] = value if isinstance(value, list | tuple) else str(value).split(",")
        try:
            return tuple(float(part) for part in parts)
        except (TypeError, ValueError):
            self.fail(f"expected numbers with commas between them, found {value!r}", param, ctx)


def named_values(settings: Sequence[str]) -> dict[str, str]:
    """`--set NAME=VALUE` words as a mapping; the library checks names and values.

    Raises:
        click.UsageError: a word without "=", or a name given twice.
    """
    values: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not (equals and name.strip()):
            raise click.UsageError(f"--set {setting!r}: expected OPTION=VALUE")
        if name.strip() in values:
            raise click.UsageError(f"--set {name.strip()}: given twice")
        values[name.strip()] = value.strip()
    return values


@contextmanager
def start_session(settings: Settings) -> Iterator[None]:
    """Show warnings as one line each while a command runs (with -v as Python does); undo `-q` afterwards."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if settings.verbose:
            sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))
        elif not settings.quiet:
            sys.stderr.write(f"warning: {message}\n")

    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            yield
        finally:
            if settings.quiet:
                _silence_progress(False)
