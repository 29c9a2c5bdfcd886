"""Worker processes: results in order; a worker that dies or hangs costs its item only."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.misbehave import misbehave
from tagger.core.errors import TaggerError
from tagger.system.worker_loop import Begin
from tagger.system.workers import Lost, StartError, run_tasks

KILLED = "its process was killed, perhaps by a lack of memory"


def run(tasks: Any, function: Any, **options: Any) -> Iterator[Any]:
    settings: dict[str, Any] = {"workers": 2, "timeout": 60.0, "window": 8}
    return run_tasks(function, tasks, **settings | options)


def double(number: int, begin: Begin) -> int:
    """Return twice a number; the first takes a while, so that others are done before it."""
    if number == 0:
        time.sleep(0.3)
    return 2 * number


def return_or_misbehave(task: str, begin: Begin) -> str:
    misbehave(task)
    return task


def each_misbehaves(tasks: list[str], begin: Begin) -> list[str]:
    results = []
    for number, task in enumerate(tasks):
        begin(number)
        results.append(return_or_misbehave(task, begin))
    return results


def fail(number: int, begin: Begin) -> None:
    raise (TaggerError if number == 1 else ZeroDivisionError)(f"task {number}")


def large(size: int, begin: Begin) -> Any:
    return np.full(size, size % 256, np.uint8)


def unchanged(content: bytes, begin: Begin) -> bytes:
    return content


def die_once(path: Path, begin: Begin) -> str:
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def die() -> None:
    os._exit(1)


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    assert list(run(range(30), double, workers=workers)) == list(range(0, 60, 2))
    assert list(run([], double, workers=workers)) == []


def test_only_a_few_tasks_are_taken_before_their_turn() -> None:
    taken: list[int] = []

    def take(number: int) -> int:
        taken.append(number)
        return number

    results = run(map(take, range(200)), double, window=6)
    next(results)
    assert len(taken) <= 6 + 1
    assert len(list(results)) == 199


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize(("fate", "reason"), [("die", KILLED), ("hang", "took more than 2 second")])
def test_a_worker_that_dies_or_hangs_costs_its_task_only(
    fate: str, reason: str, count: int
) -> None:
    tasks = ["good"] * count
    tasks[count // 2] = fate
    results = list(run(tasks, return_or_misbehave, timeout=2.0))
    lost = results.pop(count // 2)
    assert isinstance(lost, Lost)
    assert lost.reason.startswith(reason)
    assert results == ["good"] * (count - 1)


@pytest.mark.parametrize("fate", ["die", "hang"])
def test_a_worker_that_dies_or_hangs_costs_its_item_only_if_the_task_can_be_made_anew(
    fate: str,
) -> None:
    tasks = [["a", "b"], ["c", fate, "d", fate], ["e"]]

    def without(task: list[str], lost: Lost) -> list[str]:
        assert task[lost.item] == fate
        return [*task[: lost.item], lost.reason[:4], *task[lost.item + 1 :]]

    reason = {"die": KILLED, "hang": "took"}[fate][:4]
    results = list(run(tasks, each_misbehaves, timeout=2.0, retry=without))
    assert results == [["a", "b"], ["c", reason, "d", reason], ["e"]]


def test_slow_items_do_not_add_up_to_a_timeout() -> None:
    assert list(run([30], many_items, timeout=0.5)) == [30]


def many_items(count: int, begin: Begin) -> int:
    for number in range(count):
        begin(number)
        time.sleep(0.05)
    return count


def test_a_task_is_tried_again_if_its_worker_dies_once(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(3)]
    assert list(run(paths, die_once)) == ["done"] * 3


def test_an_error_in_a_worker_is_raised_here_at_its_turn() -> None:
    results = run([1, 2], fail)
    with pytest.raises(TaggerError, match=r"^task 1$"):
        next(results)
    with pytest.raises(ZeroDivisionError) as raised:
        list(run([2], fail))
    assert "in fail" in raised.value.__notes__[0]


def test_workers_that_cannot_start_are_an_error() -> None:
    with pytest.raises(StartError):
        list(run(range(3), double, init=die))


@pytest.mark.timeout(60)
def test_large_tasks_and_results_do_not_wait_for_each_other() -> None:
    contents = [bytes([number]) * 5_000_000 for number in range(8)]
    assert list(run(contents, unchanged)) == contents
    arrays = list(run([3_000_000] * 4, large))
    assert all(array.sum() == 3_000_000 * (3_000_000 % 256) for array in arrays)


@pytest.mark.parametrize("how", ["close", "stop"])
@pytest.mark.timeout(60)
def test_no_worker_is_left_when_results_are_no_longer_wanted(how: str) -> None:
    stop = threading.Event()
    before = set(multiprocessing.active_children())
    results: Any = run([30_000_000] * 8, large, stop=stop)
    next(results)
    if how == "stop":
        stop.set()
        assert list(results) == []
    else:
        results.close()
    for process in set(multiprocessing.active_children()) - before:
        process.join(5)
        assert process.exitcode == -signal.SIGKILL
