"""Tag the pictures that someone names: decoding, the model, and what follows at the same time."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tagger.core.errors import TaggerError
from tagger.inference import decoders
from tagger.inference.decoders import Square
from tagger.inference.inputs import InputImage
from tagger.models.runtimes import Output
from tagger.models.tagger import Tagger
from tagger.system.prefetch import prefetch

BATCHES_AHEAD = 2
BATCH_SIZES = {"cpu": 8, "cuda": 64}  # where none is asked for

FloatRow = npt.NDArray[np.float32]
DecodeSquares: TypeAlias = Callable[..., Iterator[Square]]


class ImagePrediction(NamedTuple):
    """What the model says of a picture, or why it was not asked."""

    image: InputImage
    probabilities: FloatRow  # (tags,), empty where the picture failed
    embedding: FloatRow | None  # (features,), if asked for
    problem: str = ""  # of the failure


@dataclass(frozen=True)
class PipelineOptions:
    """How the work is done. It has no influence on what comes out."""

    batch_size: int | None  # pictures; None: as suits the device
    workers: int  # processes that decode
    timeout: float  # seconds to decode a picture


def tag_images(
    tagger: Tagger,
    found: Sequence[InputImage],
    pace: PipelineOptions,
    *,
    embed: bool,
    stop: threading.Event,
    decode: DecodeSquares = decoders.decode_squares,
) -> Iterator[list[ImagePrediction]]:
    """Yield the answers for all pictures, in their order, a batch at a time.

    Only a few batches are held at a time. Once `stop` is set, no more come.
    decode: `decoders.squares`, some of its arguments filled in
    """
    size = pace.batch_size or BATCH_SIZES[tagger.device]
    batches = prefetch(_batches(tagger, found, pace, size, stop, decode), BATCHES_AHEAD, stop)
    return prefetch((_ask(tagger, batch, embed) for batch in batches), BATCHES_AHEAD, stop)


def _batches(
    tagger: Tagger,
    found: Sequence[InputImage],
    pace: PipelineOptions,
    size: int,
    stop: threading.Event,
    decode: DecodeSquares,
) -> Iterator[list[tuple[InputImage, Square]]]:
    squares = decode(
        [one.file for one in found if not one.problem],
        tagger.preprocess,
        workers=pace.workers,
        timeout=pace.timeout,
        stop=stop,
    )
    pairs = _paired(found, squares)
    while batch := list(islice(pairs, size)):
        if not stop.is_set():  # else the last one may be cut short
            yield batch


def _paired(
    found: Iterable[InputImage], squares: Iterator[Square]
) -> Iterator[tuple[InputImage, Square]]:
    for one in found:
        square = one.problem or next(squares, None)
        if square is None:  # stopped
            return
        yield one, square


def _ask(
    tagger: Tagger, batch: Sequence[tuple[InputImage, Square]], embed: bool
) -> list[ImagePrediction]:
    readable = [square for _, square in batch if not isinstance(square, str)]
    nothing = np.empty(0, np.float32)
    if not readable:
        return [ImagePrediction(one, nothing, None, str(reason)) for one, reason in batch]
    wanted: tuple[Output, ...] = ("probabilities", "embeddings") if embed else ("probabilities",)
    probabilities, *embedded = tagger.run(np.stack(readable), *wanted)
    if not np.isfinite(probabilities).all():
        names = ", ".join(ascii(one.file.name) for one, _ in batch[:3])
        raise TaggerError(f"The model gives what is no number for one of {names} ... Train again.")
    embeddings = embedded[0] if embed else [None] * len(readable)
    rows = zip(probabilities, embeddings, strict=True)
    return [
        ImagePrediction(one, nothing, None, square)
        if isinstance(square, str)
        else ImagePrediction(one, *next(rows))
        for one, square in batch
    ]
