"""Counts of decisions at each distinct score: what a threshold just below the score predicts."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tagger.core.arrays import Ints
from tagger.evaluation.quantized_logits import UNKNOWN, QuantizedLogits

ImageCounts = npt.NDArray[np.integer[Any]]


class Steps(NamedTuple):
    """Counts at each distinct score of the positives, from the highest score to the lowest."""

    scores: QuantizedLogits
    next_scores: QuantizedLogits  # the next lower score of any image, or UNKNOWN
    true_positives: ImageCounts  # positives with at least this score
    predicted: ImageCounts  # images with at least this score

    def narrowed(self) -> "Steps":
        """Return the steps with counts of 32 bits, which are enough for one tag."""
        return self._with_counts(np.int32)

    def widened(self) -> "Steps":
        """Return the steps with counts of 64 bits, which products of counts need."""
        return self._with_counts(np.int64)

    def _with_counts(self, kind: type[np.integer[Any]]) -> "Steps":
        counts = self.true_positives.astype(kind), self.predicted.astype(kind)
        return Steps(self.scores, self.next_scores, *counts)


class BreakEven(NamedTuple):
    """Where as many images are predicted as there are positives; both UNKNOWN without any."""

    score: QuantizedLogits  # the lowest score that predicts no more images than positives
    next_score: QuantizedLogits  # the next lower score of any image, or UNKNOWN


class Decisions(NamedTuple):
    """Counts of decisions at one threshold, from which precision, recall and the like follow."""

    true_positives: ImageCounts
    predicted: ImageCounts
    support: ImageCounts  # positives
    labelled: ImageCounts  # images, or pairs of image and tag, with a known label


def count_steps(
    seen: npt.NDArray[Any], images: Ints, positive_seen: npt.NDArray[Any], positives: Ints
) -> tuple[Steps, BreakEven]:
    """Return the steps of a tag, or of a pool of tags, and its break-even point.

    seen, images: distinct scores, rising, and how many images have each
    positive_seen, positives: the same of the images that have the tag
    """
    predicted = np.cumsum(images[::-1])[::-1]  # images with at least each score
    true_positives = np.cumsum(positives[::-1])[::-1]
    place = np.searchsorted(seen, positive_seen)
    lower = np.where(place > 0, seen[place - 1], UNKNOWN)
    steps = Steps(
        positive_seen[::-1].astype(np.uint16),
        lower[::-1].astype(np.uint16),
        true_positives[::-1],
        predicted[place][::-1],
    )
    score = next_score = UNKNOWN
    if len(positives):
        even = int(np.searchsorted(-predicted, -true_positives[0]))
        score = seen[even] if even < len(seen) else seen[-1] + 1
        next_score = seen[even - 1] if even else UNKNOWN
    return steps, BreakEven(np.array([score], np.uint16), np.array([next_score], np.uint16))
