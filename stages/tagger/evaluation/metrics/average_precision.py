"""Average precision, from counts at each distinct score."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tagger.core.arrays import Floats


def average_precision(
    true_positives: npt.NDArray[np.integer[Any]], predicted: npt.NDArray[np.integer[Any]]
) -> Floats:
    """Return the sum of precision times the step in recall, as scikit-learn defines it.

    true_positives, predicted: (scores, ...), positives and images with at least each distinct
        score, from the highest score to the lowest
    Returns (...), NaN without a positive.
    """
    if not len(true_positives):
        return np.full(true_positives.shape[1:], np.nan)
    steps = np.diff(true_positives, axis=0, prepend=0)
    with np.errstate(invalid="ignore"):
        precision = true_positives / np.maximum(1, predicted)
        return np.asarray((steps * precision).sum(axis=0) / true_positives[-1])
