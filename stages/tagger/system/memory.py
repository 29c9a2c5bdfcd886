"""Smaller batches if the memory of the device does not suffice, without importing torch."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tagger.core.errors import TaggerError

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass
class MicroBatch:
    """The number of images computed at a time, halved each time they do not fit into memory.

    Prediction: `MicroBatch(advice).compute(len(pixels), lambda start, end: ...)`.
    Training: `except torch.OutOfMemoryError`, undo the step, `micro_batch.halve(tried)`, try again.
    """

    advice: str  # what a user can do if not even the smallest number fits; a whole sentence
    size: int | None = None  # images; None: the whole batch
    minimum: int = 1  # images, tried at last
    can_halve: bool = True  # False if other processes wait in the middle of the model

    def compute(self, images: int, function: Callable[[int, int], T]) -> list[T]:
        """Return `function(start, end)` for consecutive pieces of a batch of so many images.

        A piece that does not fit is computed again in halves, and so are those after it.
        Raises TaggerError if the smallest number does not fit either.
        """
        results: list[T] = []
        start = 0
        while start < images:
            end = min(images, start + (self.size or images))
            try:
                results.append(function(start, end))
                start = end
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            self.halve(end - start)  # out of the handler: the traceback holds tensors
        return results

    def halve(self, tried: int) -> None:
        """Take half of `tried` images from now on, and log it. Raises TaggerError if it cannot."""
        if not self.can_halve or tried < 2 * self.minimum:
            raise self.error(tried)
        self.size = (tried + 1) // 2
        torch: Any = sys.modules.get("torch")
        if torch and torch.cuda.is_available():
            torch.cuda.empty_cache()
        _log.warning(f"Out of memory: {self.size} images at a time from now on.")

    def error(self, tried: int) -> TaggerError:
        images = "one image" if tried == 1 else f"{tried} images at a time"
        return TaggerError(f"The memory of the device does not suffice for {images}. {self.advice}")


def is_out_of_memory(error: BaseException) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)
