"""Signals stop work where it is whole; loader workers end with their parent alone."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from llvmlite.binding import ExecutionEngine

from tagger.images import loader
from tagger.images.dataset import ImageDataset, Split
from tagger.images.loader import ResumableBatchSampler
from tagger.images.preprocess import Preprocess
from tagger.system.jit import compiled
from tagger.system.signals import stop_on_signal

NUMBERS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_sets_the_event_and_the_second_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signal() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.wait(5)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is before  # so that a third ends even what hangs
    assert signal.getsignal(number) is before


def test_ctrl_c_while_numba_compiles_is_heard_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    find = ExecutionEngine._find_module_ptr  # which LLVM's callbacks call

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return find(*arguments)

    loop: Any = compiled(eval("lambda count: count + 1"))  # in no file: it is compiled each time
    monkeypatch.setattr(ExecutionEngine, "_find_module_ptr", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop(1)
    assert loop(1) == 2  # compiled already


@pytest.fixture
def reading(split: Split) -> Iterator[tuple[Any, list[Any]]]:
    """Batches read by two processes that have just been started, and these processes."""
    images = ImageDataset(split, Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    batches: Any = iter(
        loader.build_loader(images, ResumableBatchSampler(len(split), 1), workers=2)
    )
    yield batches, batches._workers
    batches._shutdown_workers()


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_to_all_does_not_end_loader_workers(
    reading: tuple[Any, list[Any]], split: Split, number: signal.Signals
) -> None:
    batches, workers = reading
    for worker in workers:
        subprocess.run(["kill", f"-{number.value}", str(worker.pid)], check=True)
    time.sleep(0.3)
    assert all(worker.is_alive() for worker in workers)
    assert len(list(batches)) == len(split)


def test_loader_workers_end_by_the_signal_of_their_parent(
    reading: tuple[Any, list[Any]],
) -> None:
    _, workers = reading
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
    for worker in workers:
        worker.join(timeout=5)
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_loader_workers_end_at_once_after_the_last_batch(split: Split) -> None:
    images = ImageDataset(split, Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    batches: Any = iter(
        loader.build_loader(images, ResumableBatchSampler(len(split), 8), workers=2)
    )
    assert len(list(batches)) == 3
    begun = time.monotonic()
    batches._shutdown_workers()
    assert time.monotonic() - begun < 3  # torch would wait for five seconds, then send a signal
    assert not any(worker.is_alive() for worker in batches._workers)
