"""How fast a training is, what it waits for, and how long it will take."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


class Throughput:
    """Clocks of one training: judging and writing are not part of its rate."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.started = self.last_log = time.monotonic()
        self.steps = 0  # since this process began
        self.restart()

    def restart(self) -> None:
        """Measure the rate from now on."""
        self.since = time.monotonic()
        self.saved = self.since
        self.images = 0
        self.waiting_seconds = 0.0  # seconds, for data

    def time_waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches, counting the time until each is there."""
        waiting = iter(batches)
        while True:
            asked = time.monotonic()
            try:
                batch = next(waiting)
            except StopIteration:
                return
            self.waiting_seconds += time.monotonic() - asked
            yield batch

    def step(self, pictures: int) -> None:
        self.steps += 1
        self.images += pictures

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what is done in the block out of the rate."""
        begun = time.monotonic()
        yield
        self.since += time.monotonic() - begun

    def snapshot_saved(self) -> None:
        self.saved = time.monotonic()

    def minutes_since_snapshot(self) -> float:
        return (time.monotonic() - self.saved) / 60

    def metrics(self) -> dict[str, float]:
        """Return pictures per second, the share of time without data, and memory in GB."""
        seconds = max(1e-9, time.monotonic() - self.since)
        found = {
            "pictures_per_second": self.images / seconds,
            "waiting_for_data": min(1.0, self.waiting_seconds / seconds),
        }
        if self.device.type == "cuda":
            found["gpu_memory"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        return found

    def seconds_left(self, steps: int) -> float:
        """Return how long so many more steps take, with all that is done between them."""
        return (time.monotonic() - self.started) / max(1, self.steps) * steps

    def summary(self, steps_left: int) -> str:
        figures, left = self.metrics(), self.seconds_left(steps_left)
        memory = f"  {figures['gpu_memory']:.1f} GB" if "gpu_memory" in figures else ""
        return (
            f"{figures['pictures_per_second']:,.0f} pictures/s  "
            f"{figures['waiting_for_data']:.0%} waiting for data{memory}  "
            + (f"{left / 60:,.0f} min left" if left >= 90 else f"{left:.0f} s left")
        )

    def minute_passed(self) -> bool:
        """Whether it is a minute since something was told."""
        if time.monotonic() - self.last_log < 60:
            return False
        self.last_log = time.monotonic()
        return True
