"""Every failure becomes, here and nowhere else, one message on stderr and one exit code."""

from __future__ import annotations

import errno
import platform
import shlex
import sys
import traceback
from collections.abc import Sequence

import click

from kdcache.errors import KdcacheError
from kdcache.urls import clean_text, clean_url
from kdcache.version import __version__

EXIT_INTERRUPTED = 130
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_RESOURCES = 6
EXIT_BUG = 70

# What to type after Ctrl-C. A dump continues by itself; a training run continues when it is told to.
RESUMED_BY = {"dump-teacher": "", "distill": " --resume", "train-teacher": " --resume"}
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})


def report_failure(error: BaseException, arguments: Sequence[str], *, verbose: bool) -> int:
    """Print what went wrong and what to do, and return the exit code.

    Args:
        error: what the command raised.
        arguments: the words after `kdcache`, for messages that repeat the command.
        verbose: show the traceback too.
    """
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, click.ClickException):
        return _usage(error)
    if verbose:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, KdcacheError):
        _say(error.message, error.hint or _general_hint(error, arguments))
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return _interrupted(arguments)
    return _system_failure(error) or _bug(error, arguments, verbose=verbose)


def _say(message: str, hint: str = "") -> None:
    sys.stderr.write(clean_text(f"error: {message}\n"))
    if hint:
        sys.stderr.write(clean_text(f"  next: {hint}\n"))
    sys.stderr.flush()


def _general_hint(error: KdcacheError, arguments: Sequence[str]) -> str:
    """What always helps with a wrong setting, where the library names nothing better."""
    pairs = zip(("", *arguments), arguments, strict=False)
    name = next((word for before, word in pairs if not word.startswith("-") and before != "--config"), "")
    return f"kdcache {name} --help".replace("  ", " ") if error.exit_code == EXIT_USAGE else ""


def _usage(error: click.ClickException) -> int:
    where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "kdcache"
    _say(error.format_message(), f"{where} --help")
    return EXIT_USAGE


def _interrupted(arguments: Sequence[str]) -> int:
    name = next((word for word in arguments if word in RESUMED_BY), None)
    sys.stderr.write("\ninterrupted\n")
    if name is not None:
        again = RESUMED_BY[name] if RESUMED_BY[name].strip() not in arguments else ""
        sys.stderr.write(f"  next: to continue where it stopped: {_command_line(arguments)}{again}\n")
    return EXIT_INTERRUPTED


def _system_failure(error: BaseException) -> int:
    """Exit code 3 or 6 for failures of the machine rather than of the program; 0 when it is neither."""
    if isinstance(error, MemoryError) or _is_torch_out_of_memory(error):
        _say(f"out of memory: {_first_line(error)}", "a smaller --batch-size, or another --device")
        return EXIT_RESOURCES
    if not isinstance(error, OSError):
        return 0
    subject = error.filename if error.filename is not None else "the system"
    if error.errno in _NO_SPACE:
        _say(f"{subject}: no space left: {error.strerror}", "free some space, then give the same command again")
        return EXIT_RESOURCES
    if error.errno in _NOT_ALLOWED:
        _say(f"{subject}: {error.strerror}", "check the permissions, or name another folder with --out")
        return EXIT_RESOURCES
    if error.errno in _NOT_THERE and error.filename is not None:
        _say(f"{subject}: {error.strerror}", "check the path")
        return EXIT_NOT_FOUND
    return 0


def _is_torch_out_of_memory(error: BaseException) -> bool:
    # By name, not by type: torch is not imported here.
    kind = type(error)
    return (kind.__name__ == "OutOfMemoryError" and kind.__module__.startswith("torch")) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _bug(error: BaseException, arguments: Sequence[str], *, verbose: bool) -> int:
    place = _innermost_place(error)
    loud = [word for word in arguments if word not in ("-q", "--quiet")]  # -q and -v exclude each other
    again = "" if verbose else f"  next: for the traceback: {_command_line([*loud, '-v'])}\n"
    sys.stderr.write(
        f"error: this is a bug in kdcache: {type(error).__name__}: {_first_line(error)}\n"
        f"{again}"
        "  please report the command, the traceback and these facts:\n"
        f"    kdcache {__version__}, Python {platform.python_version()}, {platform.platform()}, at {place}\n"
    )
    return EXIT_BUG


def _innermost_place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "kdcache" in frame.filename]
    if not frames:
        return "an unknown place"
    frame = (own or frames)[-1]
    return f"{frame.filename.rsplit('kdcache/', 1)[-1]}:{frame.lineno}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _command_line(arguments: Sequence[str]) -> str:
    return shlex.join(["kdcache", *map(clean_url, arguments)])
