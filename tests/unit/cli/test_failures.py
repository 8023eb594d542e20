"""Each kind of failure has one exit code and says what to do next."""

from __future__ import annotations

import errno

import click
import pytest

from kdcache import errors
from kdcache.cli.failures import report_failure
from kdcache.version import __version__


def raised(error: BaseException) -> BaseException:
    """The error with a traceback, as a command would raise it."""
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - any kind is under test
        return caught


def os_error(number: int, path: str | None = "out.zarr") -> OSError:
    return OSError(number, "the system's words", path)


CODES = [
    (errors.CheckFailedError("no", hint="do"), 1),
    (errors.ConfigError("no", hint="do"), 2),
    (errors.NotFoundError("no", hint="do"), 3),
    (errors.UnfinishedStoreError("no", hint="do"), 3),
    (errors.ChecksumError("no", hint="do"), 4),
    (errors.RemoteError("no", hint="do"), 5),
    (errors.LockedError("no", hint="do"), 6),
    (click.UsageError("no"), 2),
    (KeyboardInterrupt(), 130),
    (MemoryError("12 GB"), 6),
    (os_error(errno.ENOSPC), 6),
    (os_error(errno.EDQUOT), 6),
    (os_error(errno.EACCES), 6),
    (os_error(errno.EROFS), 6),
    (os_error(errno.ENOENT), 3),
    (ZeroDivisionError("division by zero"), 70),
    (os_error(errno.EIO, None), 70),
]


@pytest.mark.parametrize(("error", "code"), CODES, ids=[type(error).__name__ + str(code) for error, code in CODES])
def test_each_failure_has_its_exit_code_and_says_so_on_stderr(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_failure(raised(error), ["info"], verbose=False) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip()
    assert "Traceback" not in err


def test_an_error_of_ours_prints_message_and_hint(capsys: pytest.CaptureFixture[str]) -> None:
    report_failure(errors.NotFoundError("no store x", hint="kdcache dump-teacher"), ["info"], verbose=False)
    assert capsys.readouterr().err == "error: no store x\n  next: kdcache dump-teacher\n"


@pytest.mark.parametrize(
    ("words", "continued"),
    [
        (["dump-teacher", "--out", "a b"], "kdcache dump-teacher --out 'a b'\n"),
        (["-q", "distill", "--seed", "1"], "kdcache -q distill --seed 1 --resume\n"),
        (["distill", "--resume"], "kdcache distill --resume\n"),
    ],
)
def test_an_interrupted_command_says_how_to_continue(
    words: list[str], continued: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report_failure(KeyboardInterrupt(), words, verbose=False)
    assert capsys.readouterr().err.endswith(continued)


def test_a_bug_asks_for_a_report_and_hides_the_traceback_until_asked(capsys: pytest.CaptureFixture[str]) -> None:
    report_failure(raised(ZeroDivisionError("division by zero")), ["info", "x"], verbose=False)
    brief = capsys.readouterr().err
    assert "bug in kdcache: ZeroDivisionError: division by zero" in brief
    assert f"kdcache {__version__}" in brief
    assert "kdcache info x -v" in brief
    report_failure(raised(ZeroDivisionError("division by zero")), ["info", "x", "-v"], verbose=True)
    assert "Traceback" in capsys.readouterr().err


def test_torch_running_out_of_memory_is_a_matter_of_resources(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    assert report_failure(raised(RuntimeError(text)), ["distill"], verbose=False) == 6
    assert "--batch-size" in capsys.readouterr().err
