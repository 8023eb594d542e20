"""Results on stdout: one JSON document or text; a reader that leaves early is not an error."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from kdcache.cli.output import facts, human_bytes, table, write_json


@dataclass(frozen=True)
class Result:
    path: Path
    numbers: tuple[float, ...]
    count: object


def test_json_is_one_document_of_plain_values(capsys: pytest.CaptureFixture[str]) -> None:
    write_json(Result(Path("a/b"), (1.5, math.nan, math.inf), np.int64(3)))
    assert json.loads(capsys.readouterr().out) == {"path": "a/b", "numbers": [1.5, None, None], "count": 3}


def test_a_tables_columns_line_up() -> None:
    lines = table([["ce", "87.8"], ["kd-topk", "9.1"]], header=["method", "acc"], right=[1]).splitlines()
    assert lines == ["method    acc", "-------  ----", "ce       87.8", "kd-topk   9.1"]


def test_facts_line_up() -> None:
    assert facts([("k", "10"), ("rows", "2000")]) == "k     10\nrows  2000"


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1234, "1.2 kB"), (3e12, "3.0 TB")])
def test_bytes_are_readable(count: float, text: str) -> None:
    assert human_bytes(count) == text


def test_a_closed_pipe_ends_quietly_and_keeps_the_exit_code() -> None:
    code = (
        "import sys\n"
        "from kdcache.cli.output import close_stdout, write_result\n"
        "sys.stdin.readline()\n"
        "write_result('x' * 100_000)\n"
        "write_result('more')\n"
        "sys.exit(close_stdout(4))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 4
    assert error == b""
