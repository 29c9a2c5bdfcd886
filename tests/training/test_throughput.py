"""Throughput counts training alone, and its summary reads well."""

from collections.abc import Iterator

import pytest
import torch

from tagger.training.throughput import Throughput


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throughput(clock: Clock) -> Throughput:
    return Throughput(torch.device("cpu"), clock)


def test_rate_is_measured_since_the_restart(clock: Clock, throughput: Throughput) -> None:
    clock.sleep(100)
    throughput.add_step(64)
    throughput.restart()
    for _ in range(3):
        clock.sleep(2)
        throughput.add_step(50)
    assert throughput.metrics() == {"images_per_second": 25, "waiting_for_data": 0}


def test_waiting_ends_when_a_batch_arrives(clock: Clock, throughput: Throughput) -> None:
    def slow_batches() -> Iterator[int]:
        for number in range(4):
            clock.sleep(3)
            yield number
        clock.sleep(3)

    batches = []
    for batch in throughput.time_waiting(slow_batches()):
        batches.append(batch)
        clock.sleep(1)
        throughput.add_step(8)
    assert batches == [0, 1, 2, 3]
    clock.sleep(5)
    assert throughput.metrics()["waiting_for_data"] == pytest.approx(12 / 24)
    throughput.restart()
    clock.sleep(1)
    assert throughput.metrics()["waiting_for_data"] == 0


def test_time_left_includes_validation(clock: Clock, throughput: Throughput) -> None:
    for _ in range(4):
        clock.sleep(1)
        throughput.add_step(8)
    clock.sleep(8)
    throughput.restart()
    assert throughput.seconds_left(10) == pytest.approx(30)


def test_summary_rounds_and_takes_minutes_for_long_times(
    clock: Clock, throughput: Throughput
) -> None:
    for batch in throughput.time_waiting(iter(range(2))):
        clock.sleep(20)
        throughput.add_step(40_000 + batch)
    assert throughput.summary(2) == "2,000 images/s  0% waiting for data  40 s left"
    assert throughput.summary(300) == "2,000 images/s  0% waiting for data  100 min left"
    assert throughput.summary(0).endswith("  0 s left")


def test_metrics_before_the_first_step_are_0(throughput: Throughput) -> None:
    assert throughput.metrics() == {"images_per_second": 0, "waiting_for_data": 0}
    assert throughput.seconds_left(100) == 0


def test_progress_is_logged_once_a_minute(clock: Clock, throughput: Throughput) -> None:
    logged = []
    for second in range(1, 200):
        clock.sleep(1)
        if throughput.minute_passed():
            logged.append(second)
    assert logged == [60, 120, 180]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_memory_is_the_largest_use() -> None:
    throughput = Throughput(torch.device("cuda"))
    held = torch.zeros(1 << 28, dtype=torch.uint8, device="cuda")
    assert 0.26 < throughput.metrics()["gpu_memory"] < 80
    assert " GB  " in throughput.summary(1)
    del held
