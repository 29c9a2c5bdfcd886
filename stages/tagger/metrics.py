"""How good predictions are. Tags without a positive picture have no score and are left out."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]  # (pictures, tags), probabilities
Truth = npt.NDArray[np.bool_]  # (pictures, tags)
Floats = npt.NDArray[np.float64]

_AT_ONCE = 1 << 22  # pairs


def average_precision(scores: Scores, truth: Truth) -> Floats:
    """Return the average precision of each tag, (tags,), NaN where no picture has it.

    The sum of precision times the step in recall, over distinct scores, as scikit-learn does.
    """
    return np.array([_precision(scores[:, tag], truth[:, tag]) for tag in range(truth.shape[1])])


def macro_ap(scores: Scores, truth: Truth) -> float:
    """Return the mean average precision over the tags that some picture has, 0 without any."""
    precisions = average_precision(scores, truth)
    has = ~np.isnan(precisions)
    return float(precisions[has].mean()) if has.any() else 0.0


def micro_ap(scores: Scores, truth: Truth) -> float:
    """Return the average precision over all pairs of picture and tag, 0 without a positive."""
    return _precision(scores.reshape(-1), truth.reshape(-1)) if truth.any() else 0.0


def _precision(scores: Scores, truth: Truth) -> float:
    """Return the average precision of scores, (pairs,), NaN without a positive.

    It needs no order of all pairs, only how many are at least as high as each positive.
    """
    own = np.sort(scores[truth])
    if not len(own):
        return float("nan")
    given = np.zeros(len(own), np.int64)
    for start in range(0, len(scores), _AT_ONCE):
        some = np.sort(scores[start : start + _AT_ONCE])
        given += len(some) - np.searchsorted(some, own)
    true = len(own) - np.searchsorted(own, own)
    return float((true / given).mean())


class Counts(NamedTuple):
    """Decisions counted for each tag, (tags,), or for several thresholds, (thresholds, tags)."""

    true_positive: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    support: npt.NDArray[np.int64]

    def summed(self) -> "Counts":
        return Counts(*(counts.sum(axis=-1, keepdims=True) for counts in self))

    @property
    def precision(self) -> Floats:
        """Share of the predicted that is true; 0 where nothing is predicted."""
        return _share(self.true_positive, self.predicted)

    @property
    def recall(self) -> Floats:
        return _share(self.true_positive, self.support)

    @property
    def f1(self) -> Floats:
        return _share(2 * self.true_positive, self.predicted + self.support)


def _share(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> Floats:
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=whole > 0)


def count(scores: Scores, truth: Truth, thresholds: float | Floats) -> Counts:
    """Count the decisions `score >= threshold`, with one threshold or one per tag, (tags,)."""
    predicted = scores >= thresholds
    return Counts((predicted & truth).sum(axis=0), predicted.sum(axis=0), truth.sum(axis=0))


def sweep(scores: Scores, truth: Truth, grid: Floats) -> Counts:
    """Count the decisions at every threshold of a grid, (thresholds, tags)."""
    return Counts(*map(np.stack, zip(*(count(scores, truth, t) for t in grid), strict=True)))


def figures(scores: Scores, truth: Truth, thresholds: float | Floats) -> dict[str, float | int]:
    """Return the figures of one set of pictures and tags, as evaluate.json holds them."""
    has = truth.any(axis=0)
    counts = count(scores, truth, thresholds)
    overall = counts.summed()
    shares = {
        "macro_ap": macro_ap(scores, truth),
        "micro_ap": micro_ap(scores, truth),
        "macro_f1": counts.f1[has].mean() if has.any() else 0.0,
        "micro_f1": overall.f1[0],
        "micro_precision": overall.precision[0],
        "micro_recall": overall.recall[0],
    }
    sizes = {"images": len(scores), "tags": int(has.sum()), "unsupported": int((~has).sum())}
    return {name: round(float(share), 6) for name, share in shares.items()} | sizes
