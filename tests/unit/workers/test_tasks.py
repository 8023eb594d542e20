"""Tasks in real processes: answers in order, errors as they were raised, a killed worker costs its task only."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from kdcache.errors import ConfigError, NotFoundError, ResourceError
from kdcache.workers.tasks import Workforce, answer, in_order
from tests.unit.workers.work import broken, die, echo, missing, who

TWO = Workforce(workers=2)
Captured = pytest.CaptureFixture[str]


def test_answers_come_in_the_order_of_the_orders_whoever_is_first() -> None:
    orders = [
        {"number": number, "seconds": 0.2 * (number % 2 == 0), "times": 1 + 10**5 * number} for number in range(5)
    ]
    expected = [str(number).encode() * (1 + 10**5 * number) for number in range(5)]
    assert list(in_order(TWO, echo, orders)) == expected
    assert list(in_order(Workforce(), echo, orders[1:2])) == expected[1:2]


def test_a_killed_worker_costs_its_task_only_and_an_error_is_raised_as_it_was(tmp_path: Path, capsys: Captured) -> None:
    orders = [{"number": number, "folder": str(tmp_path), "deaths": 1} for number in range(6)]
    assert list(in_order(TWO, die, orders)) == [str(number).encode() for number in range(6)]
    assert capsys.readouterr().err.count("a worker was killed; its block goes to another one") == 1
    with pytest.raises(NotFoundError, match="7: not there") as caught:
        list(in_order(TWO, missing, [{"number": 7}]))
    assert caught.value.hint == "look elsewhere"


def test_a_task_that_kills_every_worker_is_given_up(tmp_path: Path) -> None:
    orders = [{"number": 3, "folder": str(tmp_path), "deaths": 9}]
    with pytest.raises(ResourceError, match="3 workers were killed one after another"):
        list(in_order(TWO, die, orders))
    assert len(list(tmp_path.iterdir())) == 3


def test_closing_early_ends_the_workers_and_takes_no_more_orders() -> None:
    taken: list[int] = []

    def orders() -> object:
        for number in range(1000):
            taken.append(number)
            yield {"number": number}

    answers = in_order(TWO, who, orders())  # type: ignore[arg-type]
    process = int(next(answers))
    answers.close()
    deadline = time.monotonic() + 20
    while _runs(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(process)
    assert len(taken) < 10


def test_errors_of_others_and_other_versions_are_told(capsys: Captured) -> None:
    order = json.loads('{"version": "", "work": "tests.unit.workers.work:broken", "order": {}}')
    assert b"the command" in answer(json.dumps(order))
    with pytest.raises(ZeroDivisionError):
        list(in_order(Workforce(), broken, [{}]))


@pytest.mark.parametrize(("workers", "dask", "said"), [(0, "", "1 or more"), (2, "tcp://a:1", "exclude each other")])
def test_a_workforce_that_cannot_be_is_refused(workers: int, dask: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Workforce(workers=workers, dask=dask)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
