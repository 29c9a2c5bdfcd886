"""Squares come in order whatever happens to the processes that make them."""

import multiprocessing
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from tagger.images import decode
from tagger.images.dataset import Split
from tagger.images.preprocess import Preprocess
from tagger.inference import decoders
from tagger.inference.decoders import Square

PREPARED = Preprocess(size=24, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SLOW = 100.0  # seconds


def decode_all(
    paths: list[Path], *, workers: int, timeout: float = SLOW, prepared: Preprocess = PREPARED
) -> list[Square]:
    stop = threading.Event()
    return list(
        decoders.decode_squares(paths, prepared, workers=workers, timeout=timeout, stop=stop)
    )


@pytest.fixture
def paths(split: Split) -> list[Path]:
    """More pictures than are decoded without other processes."""
    return [Path(place.path) for place in split.locations]


@pytest.fixture
def slow(large_image: Path, tmp_path: Path) -> list[Path]:
    """Pictures that take some time each."""
    links = [tmp_path / f"slow{number:02}.png" for number in range(decoders.MAX_IN_PROCESS + 8)]
    for link in links:
        link.hardlink_to(large_image)
    return links


def alone(paths: list[Path]) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    return [PREPARED.to_square(decode.open_rgb(path)) for path in paths]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("times", [1, 2])  # below and above the number worth compiling
def test_squares_are_the_same_and_in_order_for_any_number_of_processes(
    paths: list[Path], workers: int, times: int
) -> None:
    assert len(paths) < decoders.MIN_FOR_JIT < 2 * len(paths)
    found = decode_all(paths * times, workers=workers)
    assert np.array_equal(np.stack(found), np.stack(alone(paths) * times))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_gives_its_reason_in_its_place(
    paths: list[Path], tmp_path: Path, workers: int
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    asked = [*paths[:3], tmp_path / "bad.png", tmp_path / "gone.png", *paths[3:]]
    found = decode_all(asked, workers=workers)
    assert [isinstance(one, str) for one in found] == [path not in paths for path in asked]
    assert found[4] == "No such file or directory"


def signalled(paths: list[Path], number: signal.Signals, timeout: float = SLOW) -> list[Square]:
    """Decode in one process, which gets a signal in the midst of its work."""
    stop = threading.Event()
    found = []
    timer = threading.Timer(0.1, lambda: hit(number))
    for one in decoders.decode_squares(paths, PREPARED, workers=1, timeout=timeout, stop=stop):
        found.append(one)
        if len(found) == 3:
            timer.start()
    timer.join()
    return found


def hit(number: signal.Signals) -> None:
    (child,) = multiprocessing.active_children()
    assert child.pid
    os.kill(child.pid, number)


def test_a_process_killed_from_outside_costs_no_picture(slow: list[Path]) -> None:
    found = signalled(slow, signal.SIGKILL)
    assert np.array_equal(np.stack(found), np.stack(alone(slow[:1]) * len(slow)))


def test_a_picture_that_processes_die_of_fails_and_the_others_do_not(
    slow: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "_TRIES", 1)
    found = signalled(slow, signal.SIGKILL)
    assert [one for one in found if isinstance(one, str)] == [
        "the process that decoded it was killed, perhaps for want of memory"
    ]


def test_a_picture_that_takes_too_long_is_given_up_and_the_others_go_on(slow: list[Path]) -> None:
    found = signalled(slow, signal.SIGSTOP, timeout=4)
    reasons = [one for one in found if isinstance(one, str)]
    assert reasons == ["took more than 4 seconds to decode"]
    good = [one for one in found if not isinstance(one, str)]
    assert np.array_equal(np.stack(good), np.stack(alone(slow[:1]) * (len(slow) - 1)))


def test_in_this_process_too_a_picture_may_take_only_so_long(slow: list[Path]) -> None:
    found = decode_all(slow[:2], workers=0, timeout=0.001)
    assert found == ["took more than 0.001 seconds to decode"] * 2


@pytest.mark.parametrize("workers", [0, 2])
def test_once_stopped_no_more_come_and_no_process_is_left(paths: list[Path], workers: int) -> None:
    stop = threading.Event()
    squares = decoders.decode_squares(paths, PREPARED, workers=workers, timeout=SLOW, stop=stop)
    next(squares)
    stop.set()
    assert len(list(squares)) < len(paths) - 1
    for process in multiprocessing.active_children():
        process.join(timeout=5)
    assert not multiprocessing.active_children()
