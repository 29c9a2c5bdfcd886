"""A batch that does not fit into the memory of the device is computed in smaller pieces."""

from collections.abc import Callable

import pytest
import torch

from tagger.core.errors import TaggerError
from tagger.system.memory import MicroBatch


def fits(most: int) -> Callable[[int, int], range]:
    """Return a function that has memory for so many images."""

    def compute(start: int, end: int) -> range:
        if end - start > most:
            raise torch.OutOfMemoryError
        return range(start, end)

    return compute


def test_out_of_memory_halves_the_batch_and_all_later_ones(
    caplog: pytest.LogCaptureFixture,
) -> None:
    micro_batch = MicroBatch("Buy memory.")
    assert micro_batch.compute(10, fits(3)) == [range(0, 3), range(3, 6), range(6, 9), range(9, 10)]
    assert micro_batch.compute(5, fits(3)) == [range(0, 3), range(3, 5)]
    assert [record.message[:22] for record in caplog.records] == [
        "Out of memory: 5 image",
        "Out of memory: 3 image",
    ]


@pytest.mark.parametrize(
    ("micro_batch", "message"),
    [
        (MicroBatch("Buy memory."), "for one image. Buy memory."),
        (MicroBatch("Buy memory.", minimum=2), "for 3 images at a time. Buy memory."),
        (MicroBatch("Buy memory.", can_halve=False), "for 12 images at a time. Buy memory."),
    ],
)
def test_out_of_memory_at_the_smallest_batch_is_an_error(
    micro_batch: MicroBatch, message: str
) -> None:
    with pytest.raises(TaggerError, match=message):
        micro_batch.compute(12, fits(0))


def test_other_errors_are_not_taken_for_out_of_memory() -> None:
    def broken(start: int, end: int) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        MicroBatch("").compute(4, broken)
