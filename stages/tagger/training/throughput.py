"""The throughput of a training, its waiting for data, and the time left."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


class Throughput:
    """Clocks of one training. `restart` leaves validation and writing out of the rate.

    clock: seconds, from any start
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.monotonic) -> None:
        self.device = device
        self.clock = clock
        self.started = self.last_log = clock()
        self.steps = 0  # since this process began
        self.restart()

    def restart(self) -> None:
        """Measure the rate from now on."""
        self.since = self.clock()
        self.images = 0
        self.waiting_seconds = 0.0  # for data

    def time_waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches, and measure how long each takes to arrive."""
        iterator = iter(batches)
        while True:
            requested = self.clock()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.waiting_seconds += self.clock() - requested
            yield batch

    def add_step(self, images: int) -> None:
        self.steps += 1
        self.images += images

    def metrics(self) -> dict[str, float]:
        """Return images per second, the fraction of time without data, and memory in GB."""
        seconds = max(1e-9, self.clock() - self.since)
        metrics = {
            "images_per_second": self.images / seconds,
            "waiting_for_data": min(1.0, self.waiting_seconds / seconds),
        }
        if self.device.type == "cuda":
            metrics["gpu_memory"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        return metrics

    def seconds_left(self, steps: int) -> float:
        """Return how long this many more steps take, with validations between them."""
        return (self.clock() - self.started) / max(1, self.steps) * steps

    def summary(self, steps_left: int) -> str:
        """Return the metrics and the time left as text for the log."""
        metrics, left = self.metrics(), self.seconds_left(steps_left)
        memory = f"  {metrics['gpu_memory']:.1f} GB" if "gpu_memory" in metrics else ""
        return (
            f"{metrics['images_per_second']:,.0f} images/s  "
            f"{metrics['waiting_for_data']:.0%} waiting for data{memory}  "
            + (f"{left / 60:,.0f} min left" if left >= 90 else f"{left:.0f} s left")
        )

    def minute_passed(self) -> bool:
        """Whether a minute has passed since this was last true."""
        if self.clock() - self.last_log < 60:
            return False
        self.last_log = self.clock()
        return True
