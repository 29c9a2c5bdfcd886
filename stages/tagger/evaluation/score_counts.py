"""How often each score occurs with a tag and without: metrics and thresholds follow from it.

Memory grows with the positives, 20 bytes each, and with the tags, half a kilobyte each.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tagger.core.arrays import Floats, Ints, Mask
from tagger.evaluation import quantized_logits
from tagger.evaluation.metrics.average_precision import average_precision
from tagger.evaluation.prediction_store import PredictionStore, TagBlock
from tagger.evaluation.quantized_logits import (
    LEVELS,
    UNKNOWN,
    QuantizedLogits,
    logit_table,
    probability_table,
    softplus_table,
)

ImageCounts = npt.NDArray[np.integer[Any]]

CURVE_THRESHOLDS = np.round(np.arange(0.01, 1.0, 0.01), 2)  # of the curve of F1
BINS = 15  # of probability, equally wide, for the calibration error


class Steps(NamedTuple):
    """Counts at each distinct score of the positives, from the highest score to the lowest."""

    scores: QuantizedLogits
    next_scores: QuantizedLogits  # the next lower score of any image, or UNKNOWN
    true_positives: ImageCounts  # positives with at least this score
    predicted: ImageCounts  # images with at least this score


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


class CalibrationBins(NamedTuple):
    """Sums over the pairs of each bin of probability, (tags, BINS) or (BINS,)."""

    pairs: ImageCounts
    probability: Floats
    positives: ImageCounts


class Histogram(NamedTuple):
    """How often each quantized logit occurs, (pools, LEVELS) or (LEVELS,)."""

    pairs: Ints
    positives: Ints


class _TagCounts(NamedTuple):
    """The counts of one tag; the fields of `ScoreCounts` say what they are."""

    steps: Steps
    break_even: BreakEven
    labelled: int
    true_positives_at: Ints
    predicted_at: Ints
    squared_error: float
    cross_entropy: float
    bins: CalibrationBins


@dataclass(frozen=True)
class ScoreCounts:
    """The counts of all tags. The steps of a tag start at its entry of `starts`."""

    images: int
    starts: Ints  # (tags + 1,)
    steps: Steps  # (steps,)
    break_even: BreakEven  # (tags,)
    labelled: Ints  # (tags,), images
    true_positives_at: Ints  # (tags, thresholds)
    predicted_at: Ints  # (tags, thresholds), images
    squared_error: Floats  # (tags,), sum over images
    cross_entropy: Floats  # (tags,), sum over images, in nats
    bins: CalibrationBins  # (tags, BINS)
    pools: Histogram  # (pools, LEVELS)
    pool_of: Ints  # (tags,)

    def __len__(self) -> int:
        return len(self.labelled)

    def steps_of(self, tag: int) -> Steps:
        inside = slice(*self.starts[tag : tag + 2])
        scores, next_scores, true_positives, predicted = self.steps
        return Steps(scores[inside], next_scores[inside], true_positives[inside], predicted[inside])

    @cached_property
    def support(self) -> Ints:
        """Positives of each tag, (tags,)."""
        supported = self.starts[1:] > self.starts[:-1]
        last = np.append(self.steps.true_positives, 0)[self.starts[1:] - 1]
        return np.where(supported, last, 0)

    @cached_property
    def tag_of(self) -> Ints:
        """The tag of each step, (steps,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @cached_property
    def average_precision(self) -> Floats:
        """Of each tag, (tags,), NaN without a positive."""
        steps = map(self.steps_of, range(len(self)))
        values = [average_precision(tag.true_positives, tag.predicted) for tag in steps]
        return np.array(values, np.float64)

    def decisions(self, index: int) -> Decisions:
        """Return the counts at one of the thresholds that were counted, (tags,) each."""
        counts = self.true_positives_at[:, index], self.predicted_at[:, index]
        return Decisions(*counts, self.support, self.labelled)

    def pooled(self, inside: Mask) -> Histogram:
        """Return the histogram of some tags; inside: (tags,), all tags of a pool, or none."""
        pools = np.unique(self.pool_of[inside])
        return Histogram(*(np.asarray(counts[pools].sum(axis=0)) for counts in self.pools))


def count(
    store: PredictionStore,
    pool_of: Ints,
    *,
    thresholds: QuantizedLogits | None = None,
    excluded: Mask | None = None,
) -> ScoreCounts:
    """Count the scores of all tags in one pass over the store.

    pool_of: (tags,), the number of each tag's pool, such as its category
    thresholds: (tags, thresholds), at which to count decisions
    excluded: (images,), images that do not count
    """
    if thresholds is None:
        thresholds = np.empty((store.tag_count, 0), np.uint16)

    def count_block(block: TagBlock) -> tuple[Ints, Histogram, list[_TagCounts]]:
        if excluded is not None:
            block.scores[:, excluded] = UNKNOWN
        pools, local = np.unique(pool_of[block.tags], return_inverse=True)
        histogram = _empty_histogram(len(pools))
        counts = []
        for place, pool in enumerate(local.tolist()):
            tag_thresholds = thresholds[block.tags.start + place]
            pool_counts = Histogram(histogram.pairs[pool], histogram.positives[pool])
            counts.append(_count_tag(*block[place], tag_thresholds, pool_counts))
        return pools, histogram, counts

    total = _empty_histogram(int(pool_of.max(initial=-1)) + 1)
    tags: list[_TagCounts] = []
    for pools, histogram, counts in store.map_tag_blocks(count_block):
        total.pairs[pools] += histogram.pairs
        total.positives[pools] += histogram.positives
        tags += counts
    return _combine(len(store), tags, thresholds.shape[1], total, pool_of)


def _empty_histogram(pools: int) -> Histogram:
    return Histogram(*np.zeros((2, pools, LEVELS), np.int64))


def _count_tag(
    scores: QuantizedLogits, rows: Ints, thresholds: QuantizedLogits, pool: Histogram
) -> _TagCounts:
    """Count the scores of a tag, (images,); rows: (positives,), images that have it.

    pool: (LEVELS,), the histogram to add to
    """
    seen, images = np.unique(scores[scores != UNKNOWN], return_counts=True)
    positive_seen, positives = np.unique(scores[rows], return_counts=True)
    steps, break_even = count_steps(seen, images, positive_seen, positives)
    pool.pairs[seen] += images
    pool.positives[positive_seen] += positives
    p, positive_p = probability_table()[seen], probability_table()[positive_seen]
    nats = softplus_table()[seen], logit_table()[positive_seen]
    bins, positive_bins = _bin_of()[seen], _bin_of()[positive_seen]
    return _TagCounts(
        steps,
        break_even,
        int(images.sum()),
        _count_from(positive_seen, positives, thresholds),
        _count_from(seen, images, thresholds),
        float((images * p**2).sum() + (positives * (1 - 2 * positive_p)).sum()),
        float((images * nats[0]).sum() - (positives * nats[1]).sum()),
        CalibrationBins(
            np.bincount(bins, images, BINS).astype(np.int64),
            np.asarray(np.bincount(bins, images * p, BINS), np.float64),
            np.bincount(positive_bins, positives, BINS).astype(np.int64),
        ),
    )


@cache
def _bin_of() -> Ints:
    edges = np.linspace(0, 1, BINS + 1)
    return np.clip(np.searchsorted(edges, probability_table(), side="right") - 1, 0, BINS - 1)


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
        true_positives[::-1].astype(np.int32),
        predicted[place][::-1].astype(np.int32),
    )
    score = next_score = UNKNOWN
    if len(positives):
        even = int(np.searchsorted(-predicted, -true_positives[0]))
        score = seen[even] if even < len(seen) else seen[-1] + 1
        next_score = seen[even - 1] if even else UNKNOWN
    return steps, BreakEven(np.array([score], np.uint16), np.array([next_score], np.uint16))


def _count_from(scores: QuantizedLogits, counts: Ints, thresholds: QuantizedLogits) -> Ints:
    """Return how many of some counted scores, rising, reach each threshold, (thresholds,)."""
    from_top = np.append(np.cumsum(counts[::-1])[::-1], 0)
    return np.asarray(from_top[np.searchsorted(scores, thresholds)])


def _combine(
    images: int, tags: Sequence[_TagCounts], thresholds: int, pools: Histogram, pool_of: Ints
) -> ScoreCounts:
    steps, break_even = [tag.steps for tag in tags], [tag.break_even for tag in tags]
    return ScoreCounts(
        images=images,
        starts=np.cumsum([0, *(len(tag.scores) for tag in steps)]),
        steps=Steps(
            _join((tag.scores for tag in steps), np.uint16),
            _join((tag.next_scores for tag in steps), np.uint16),
            _join((tag.true_positives for tag in steps), np.int32),
            _join((tag.predicted for tag in steps), np.int32),
        ),
        break_even=BreakEven(
            _join((tag.score for tag in break_even), np.uint16),
            _join((tag.next_score for tag in break_even), np.uint16),
        ),
        labelled=np.array([tag.labelled for tag in tags], np.int64),
        true_positives_at=_stack((tag.true_positives_at for tag in tags), thresholds, np.int64),
        predicted_at=_stack((tag.predicted_at for tag in tags), thresholds, np.int64),
        squared_error=np.array([tag.squared_error for tag in tags]),
        cross_entropy=np.array([tag.cross_entropy for tag in tags]),
        bins=CalibrationBins(
            _stack((tag.bins.pairs for tag in tags), BINS, np.int64),
            _stack((tag.bins.probability for tag in tags), BINS, np.float64),
            _stack((tag.bins.positives for tag in tags), BINS, np.int64),
        ),
        pools=pools,
        pool_of=pool_of,
    )


def _join(arrays: Iterable[npt.NDArray[Any]], kind: type) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, kind), *arrays])


def _stack(rows: Iterable[npt.NDArray[Any]], width: int, kind: type) -> npt.NDArray[Any]:
    table = list(rows)
    return np.array(table, kind).reshape(len(table), width)


def evaluation_thresholds(thresholds: Floats) -> QuantizedLogits:
    """Return each tag's threshold and CURVE_THRESHOLDS, quantized, (tags, 1 + curve).

    thresholds: (tags,)
    """
    curve = quantized_logits.quantize_thresholds(CURVE_THRESHOLDS)
    curves = np.broadcast_to(curve, (len(thresholds), len(curve)))
    return np.column_stack([quantized_logits.quantize_thresholds(thresholds), curves])
