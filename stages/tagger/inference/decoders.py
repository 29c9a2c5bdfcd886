"""Images decoded and resized to squares, in order, by worker processes that may die of an image.

Pillow's decoders of PNG and WebP hold the interpreter's lock, so threads do not make them faster.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tagger.core.colours import Colour
from tagger.core.errors import TaggerError
from tagger.images import decode
from tagger.images.decode import Pixels
from tagger.images.preprocess import Preprocess
from tagger.system.worker_loop import Begin
from tagger.system.workers import Lost, StartError, run_tasks

Square: TypeAlias = Pixels | str  # (size, size, 3), or why there is none
OpenImage: TypeAlias = Callable[[Any, Colour], Pixels]  # as `decode.open_pixels`, to be pickled

MIN_FOR_JIT = 30  # images for which compiling is worth while


def decode_squares(
    paths: Sequence[Path],
    preprocess: Preprocess,
    *,
    workers: int,
    timeout: float,
    stop: threading.Event,
    isolate_single: bool = False,
    open_image: OpenImage = decode.open_pixels,
) -> Iterator[Square]:
    """Yield the square of each image, or the reason why it has none, in their order.

    workers: processes, 0 for none
    timeout: seconds that an image may take
    stop: once set, no more come
    isolate_single: whether a single image, too, is decoded by a worker, which takes time to start;
        if not, an image that kills its decoder ends this process, where nothing else is lost
    open_image: makes pixels of a file, or raises Unreadable
    """
    if not workers or (len(paths) == 1 and not isolate_single):
        yield from _decode_here(paths, preprocess, timeout, stop, open_image)
        return
    if len(paths) >= MIN_FOR_JIT:
        preprocess = preprocess.compiled()
    squares = run_tasks(
        partial(_decode_task, preprocess=preprocess, open_image=open_image),
        map(os.fsencode, paths),
        workers=workers,
        timeout=timeout,
        window=4 * workers + 16,
        init=partial(_init_worker, preprocess),
        stop=stop,
    )
    try:
        for square in squares:
            yield square.reason if isinstance(square, Lost) else square
    except StartError as error:
        raise TaggerError(f"{error} Try --workers 0.") from error


def _init_worker(preprocess: Preprocess) -> None:
    decode.init_process()
    preprocess.to_square(
        np.zeros((3 * preprocess.size, 2 * preprocess.size, 3), np.uint8)
    )  # compiles


def _decode_task(
    path: bytes, begin: Begin, *, preprocess: Preprocess, open_image: OpenImage
) -> Square:
    return decode_square(Path(os.fsdecode(path)), preprocess, open_image)


def decode_square(
    file: Path | bytes, preprocess: Preprocess, open_image: OpenImage = decode.open_pixels
) -> Square:
    """Return an image as a square, or why it cannot be one."""
    try:
        return preprocess.to_square(open_image(file, preprocess.background))
    except decode.Unreadable as error:
        return str(error)
    except MemoryError:
        return "there is not enough memory to decode it"
    except Exception as error:  # a decoder's bug costs this image, not the others
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _decode_here(
    paths: Sequence[Path],
    preprocess: Preprocess,
    timeout: float,
    stop: threading.Event,
    open_image: OpenImage,
) -> Iterator[Square]:
    """Yield squares made in threads, of which one that takes too long is left to itself."""
    for path in paths:
        if stop.is_set():
            return
        squares: list[Square] = []

        def work(path: Path = path, squares: list[Square] = squares) -> None:
            squares.append(decode_square(path, preprocess, open_image))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(timeout)
        yield squares[0] if squares else f"took more than {timeout:g} seconds"
