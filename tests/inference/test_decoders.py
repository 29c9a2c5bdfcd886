"""Squares of images: the same and in order for any number of worker processes."""

import multiprocessing
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.misbehave import open_or_misbehave
from tagger.images import decode
from tagger.images.dataset import Split
from tagger.images.preprocess import Preprocess
from tagger.inference import decoders
from tagger.inference.decoders import Square

PREPROCESS = Preprocess(size=24, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def decode_all(
    paths: list[Path], *, workers: int, timeout: float = 100.0, **options: Any
) -> list[Square]:
    stop = threading.Event()
    squares = decoders.decode_squares(
        paths, PREPROCESS, workers=workers, timeout=timeout, stop=stop, **options
    )
    return list(squares)


@pytest.fixture
def paths(split: Split) -> list[Path]:
    return [Path(location.path) for location in split.locations]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("times", [1, 2])  # below and above the number worth compiling
def test_squares_are_the_same_and_in_order_for_any_number_of_workers(
    paths: list[Path], workers: int, times: int
) -> None:
    assert len(paths) < decoders.MIN_FOR_JIT < 2 * len(paths)
    squares = decode_all(paths * times, workers=workers)
    expected = [PREPROCESS.to_square(decode.open_rgb(path)) for path in paths]
    assert np.array_equal(np.stack(squares), np.stack(expected * times))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_gives_the_reason_in_its_place(
    paths: list[Path], tmp_path: Path, workers: int
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    mixed = [*paths[:3], tmp_path / "bad.png", tmp_path / "gone.png", *paths[3:]]
    squares = decode_all(mixed, workers=workers)
    assert [isinstance(square, str) for square in squares] == [path not in paths for path in mixed]
    assert squares[4] == "No such file or directory"


@pytest.mark.parametrize("others", [0, 5])
def test_an_image_that_kills_or_hangs_its_decoder_costs_itself_only(
    paths: list[Path], others: int
) -> None:
    mixed = [Path("die.png"), *paths[:others], Path("hang.png")]
    first, *squares, last = decode_all(mixed, workers=2, timeout=1.0, open_image=open_or_misbehave)
    assert first == "its process was killed, perhaps by a lack of memory"
    assert last == "took more than 1 seconds"
    assert not any(isinstance(square, str) for square in squares)


def test_an_image_may_take_only_so_long_without_workers_too(large_image: Path) -> None:
    squares = decode_all([large_image] * 2, workers=0, timeout=0.001)
    assert squares == ["took more than 0.001 seconds"] * 2


@pytest.mark.parametrize("workers", [0, 2])
def test_no_squares_come_and_no_process_is_left_after_a_stop(
    paths: list[Path], workers: int
) -> None:
    stop = threading.Event()
    squares = decoders.decode_squares(paths, PREPROCESS, workers=workers, timeout=100.0, stop=stop)
    next(squares)
    stop.set()
    assert len(list(squares)) < len(paths) - 1
    for process in multiprocessing.active_children():
        process.join(5)
    assert not multiprocessing.active_children()
