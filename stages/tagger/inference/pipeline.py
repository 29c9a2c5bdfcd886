"""Tag images: decoding, the model, and writing run at the same time."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tagger.core.errors import TaggerError
from tagger.images.decode import Pixels
from tagger.inference import decoders
from tagger.inference.decoders import Square
from tagger.inference.inputs import InputImage
from tagger.models.predict import predict
from tagger.models.runtimes import Output
from tagger.models.tagger import Tagger
from tagger.system.prefetch import prefetch

BATCHES_AHEAD = 2
BATCH_SIZES = {"cpu": 8, "cuda": 64}  # images, if no other size is given

FloatRow = npt.NDArray[np.float32]
DecodeSquares: TypeAlias = Callable[..., Iterator[Square]]
DecodedImage: TypeAlias = tuple[InputImage, Square]  # a square, or why there is none

_NOTHING = np.empty(0, np.float32)


class ImagePrediction(NamedTuple):
    """The outputs of the model for an image, or why there are none."""

    image: InputImage
    probabilities: FloatRow  # (tags,), empty if the image cannot be read
    embedding: FloatRow | None  # (features,), if it was asked for
    problem: str = ""


@dataclass(frozen=True)
class PipelineOptions:
    """How fast the work is done. They do not change the results."""

    batch_size: int | None  # images; None: as suits the device
    workers: int  # processes that decode
    timeout: float  # seconds to decode an image


class DecodedBatch(NamedTuple):
    images: Sequence[DecodedImage]

    @property
    def squares(self) -> Pixels:
        readable = [square for _, square in self.images if not isinstance(square, str)]
        return np.stack(readable) if readable else np.empty((0, 1, 1, 3), np.uint8)


def tag_images(
    tagger: Tagger,
    images: Sequence[InputImage],
    options: PipelineOptions,
    *,
    embed: bool,
    stop: threading.Event,
    decode: DecodeSquares = decoders.decode_squares,
) -> Iterator[list[ImagePrediction]]:
    """Yield the predictions for all images, in their order, a batch at a time.

    Only a few batches are held at a time. Once `stop` is set, no more come.
    decode: `decoders.decode_squares`, some of its arguments filled in
    """
    squares = decode(
        [image.file for image in images if not image.problem],
        tagger.preprocess,
        workers=options.workers,
        timeout=options.timeout,
        stop=stop,
    )
    size = options.batch_size or BATCH_SIZES[tagger.device]
    # Once stopped, the last batch may be cut short: it is dropped.
    whole = (batch for batch in make_batches(_pairs(images, squares), size) if not stop.is_set())
    batches = prefetch(whole, BATCHES_AHEAD, stop)
    return prefetch(predict_images(tagger, batches, embed=embed), BATCHES_AHEAD, stop)


def _pairs(images: Iterable[InputImage], squares: Iterator[Square]) -> Iterator[DecodedImage]:
    for image in images:
        square = image.problem or next(squares, None)
        if square is None:  # stopped
            return
        yield image, square


def make_batches(images: Iterable[DecodedImage], size: int) -> Iterator[DecodedBatch]:
    rest = iter(images)
    while batch := list(islice(rest, size)):
        yield DecodedBatch(batch)


def predict_images(
    tagger: Tagger, batches: Iterable[DecodedBatch], *, embed: bool
) -> Iterator[list[ImagePrediction]]:
    """Yield the predictions for each batch. Raises TaggerError for outputs that are not finite."""
    outputs: tuple[Output, ...] = ("probabilities", "embeddings") if embed else ("probabilities",)
    for batch, (probabilities, *embeddings) in predict(tagger, batches, *outputs):
        if not np.isfinite(probabilities).all():
            names = ", ".join(ascii(image.file.name) for image, _ in batch.images[:3])
            raise TaggerError(
                f"The outputs of the model for one of {names} ... are not finite. Train again."
            )
        rows = zip(probabilities, embeddings[0] if embed else repeat(None), strict=False)
        yield [
            ImagePrediction(image, _NOTHING, None, square)
            if isinstance(square, str)
            else ImagePrediction(image, *next(rows))
            for image, square in batch.images
        ]
