"""The rate is that of training alone, and what is told is what a person would say."""

from collections.abc import Iterator

import pytest
import torch

from tagger.training import throughput
from tagger.training.throughput import Throughput


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


@pytest.fixture
def cpu(clock: Clock) -> Throughput:
    return Throughput(torch.device("cpu"))


def test_the_rate_is_that_of_the_time_since_the_restart(clock: Clock, cpu: Throughput) -> None:
    clock.sleep(100)
    cpu.step(64)
    cpu.restart()
    for _ in range(3):
        clock.sleep(2)
        cpu.step(50)
    assert cpu.metrics() == {"pictures_per_second": 25, "waiting_for_data": 0}


def test_judging_and_writing_are_no_part_of_the_rate(clock: Clock, cpu: Throughput) -> None:
    clock.sleep(4)
    cpu.step(100)
    with cpu.paused():
        clock.sleep(500)
    clock.sleep(1)
    assert cpu.metrics()["pictures_per_second"] == pytest.approx(20)


def test_only_the_time_before_a_batch_is_there_is_waiting(clock: Clock, cpu: Throughput) -> None:
    def slow() -> Iterator[int]:
        for number in range(4):
            clock.sleep(3)
            yield number
        clock.sleep(3)

    seen = []
    for batch in cpu.time_waiting(slow()):
        seen.append(batch)
        clock.sleep(1)
        cpu.step(8)
    assert seen == [0, 1, 2, 3]
    clock.sleep(5)
    assert cpu.metrics()["waiting_for_data"] == pytest.approx(12 / 24)
    cpu.restart()
    clock.sleep(1)
    assert cpu.metrics()["waiting_for_data"] == 0


def test_what_is_left_takes_as_long_as_what_was_done_with_all_between(
    clock: Clock, cpu: Throughput
) -> None:
    for _ in range(4):
        clock.sleep(1)
        cpu.step(8)
    with cpu.paused():
        clock.sleep(8)
    cpu.restart()
    assert cpu.seconds_left(10) == pytest.approx(30)


def test_a_line_is_what_a_person_would_say(clock: Clock, cpu: Throughput) -> None:
    for batch in cpu.time_waiting(iter(range(2))):
        clock.sleep(20)
        cpu.step(40_000 + batch)
    assert cpu.summary(2) == "2,000 pictures/s  0% waiting for data  40 s left"
    assert cpu.summary(300) == "2,000 pictures/s  0% waiting for data  100 min left"
    assert cpu.summary(0).endswith("  0 s left")


def test_before_the_first_step_there_are_figures_all_the_same(cpu: Throughput) -> None:
    assert cpu.metrics() == {"pictures_per_second": 0, "waiting_for_data": 0}
    assert cpu.seconds_left(100) == 0


def test_the_age_of_a_snapshot_is_counted_from_when_it_was_saved(
    clock: Clock, cpu: Throughput
) -> None:
    clock.sleep(90)
    assert cpu.minutes_since_snapshot() == 1.5
    cpu.snapshot_saved()
    clock.sleep(30)
    assert cpu.minutes_since_snapshot() == 0.5


def test_something_is_told_once_a_minute(clock: Clock, cpu: Throughput) -> None:
    told = []
    for second in range(1, 200):
        clock.sleep(1)
        if cpu.minute_passed():
            told.append(second)
    assert told == [60, 120, 180]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_largest_use_of_memory_is_told() -> None:
    on_gpu = Throughput(torch.device("cuda"))
    held = torch.zeros(1 << 28, dtype=torch.uint8, device="cuda")
    assert 0.26 < on_gpu.metrics()["gpu_memory"] < 80
    assert " GB  " in on_gpu.summary(1)
    del held
