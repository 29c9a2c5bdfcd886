"""The one prediction loop: batches of images in, outputs of a model out. It needs no torch."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import numpy as np

from tagger.core.arrays import Scores, Truth
from tagger.images.decode import Pixels
from tagger.models.runtimes import Array, Output, Runtime

if TYPE_CHECKING:
    from tagger.images.dataset import ReadFailure
    from tagger.images.loader import Batch


class HasSquares(Protocol):
    @property
    def squares(self) -> Pixels:
        """The readable images, (images, size, size, 3) uint8 RGB."""


B = TypeVar("B", bound=HasSquares)


class Predictions(NamedTuple):
    """The probabilities of a model for the images of a split, and the labels."""

    scores: Scores  # (images, tags), probabilities
    truth: Truth  # (images, tags)
    known: Truth  # (images, tags), whether the truth is: an unknown label is not true
    rows: list[int]  # of the split, one per image
    failures: "list[ReadFailure]"  # of each image that cannot be read


def predict(
    runtime: Runtime, batches: Iterable[B], *outputs: Output
) -> Iterator[tuple[B, list[Array]]]:
    """Yield each batch with the outputs for its images, in the order asked for.

    For a batch without images a blank is computed and dropped: if processes hold shards of the
    model, each waits for the others at every batch.
    Raises TaggerError if not even one image fits into the memory of the device.
    """
    for batch in batches:
        squares = batch.squares
        if len(squares):
            yield batch, runtime.run(squares, *outputs)
        else:
            blank = np.zeros((1, runtime.size, runtime.size, 3), np.uint8)
            yield batch, [array[:0] for array in runtime.run(blank, *outputs)]


def predict_labelled(runtime: Runtime, batches: "Iterable[Batch]", tags: int) -> Predictions:
    """Return the probabilities, and the labels, of every readable image of some batches."""
    scores = [np.empty((0, tags), np.float32)]
    targets = [np.empty((0, tags), np.int8)]
    rows: list[int] = []
    failures: list[ReadFailure] = []
    for batch, (probabilities,) in predict(runtime, batches, "probabilities"):
        failures += batch.failures
        scores.append(probabilities)
        targets.append(batch.targets.numpy())
        rows += batch.rows
    labels = np.concatenate(targets)
    return Predictions(np.concatenate(scores), labels > 0, labels >= 0, rows, failures)
