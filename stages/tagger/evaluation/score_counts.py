"""How often each score occurs with a tag and without: metrics and thresholds follow from it.

Memory grows with the positives, 20 bytes each, and with the tags, half a kilobyte each.
"""

from collections.abc import Callable, Iterator, Sequence
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
from tagger.evaluation.steps import BreakEven, Decisions, Steps, count_steps

CURVE_THRESHOLDS = np.round(np.arange(0.01, 1.0, 0.01), 2)  # of the curve of F1
BINS = 15  # of probability, equally wide, for the calibration error


class CalibrationBins(NamedTuple):
    """Sums over the pairs of each bin of probability, (tags, BINS) or (BINS,)."""

    pairs: npt.NDArray[Any]
    probability: npt.NDArray[Any]
    positives: npt.NDArray[Any]


class Histogram(NamedTuple):
    """How often each quantized logit occurs, (pools, LEVELS) or (LEVELS,)."""

    pairs: Ints
    positives: Ints


class _TagCounts(NamedTuple):
    """The counts of one tag; see `ScoreCounts`."""

    steps: Steps
    break_even: BreakEven
    bins: CalibrationBins
    support: int
    labelled: int
    true_positives_at: Ints
    predicted_at: Ints
    squared_error: float
    cross_entropy: float


@dataclass(frozen=True)
class ScoreCounts:
    """The counts of all tags. The steps of a tag start at its entry of `starts`."""

    images: int
    pools: Histogram  # (pools, LEVELS)
    pool_of: Ints  # (tags,)
    starts: Ints  # (tags + 1,)
    steps: Steps  # (steps,)
    break_even: BreakEven  # (tags,)
    bins: CalibrationBins  # (tags, BINS)
    support: Ints  # (tags,), positives
    labelled: Ints  # (tags,), images
    true_positives_at: Ints  # (tags, thresholds)
    predicted_at: Ints  # (tags, thresholds), images
    squared_error: Floats  # (tags,), sum over images
    cross_entropy: Floats  # (tags,), sum over images, in nats

    def __len__(self) -> int:
        return len(self.labelled)

    def steps_of(self, tag: int) -> Steps:
        scores, next_scores, true, predicted = self.steps
        inside = slice(*self.starts[tag : tag + 2])
        return Steps(scores[inside], next_scores[inside], true[inside], predicted[inside])

    @cached_property
    def tag_of(self) -> Ints:
        """The tag of each step, (steps,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @cached_property
    def average_precision(self) -> Floats:
        """Of each tag, (tags,), NaN without a positive."""
        steps = map(self.steps_of, range(len(self)))
        return np.array([average_precision(tag.true_positives, tag.predicted) for tag in steps])

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
    return _combine(len(store), tags, total, pool_of)


def count_decisions(
    store: PredictionStore, thresholds: QuantizedLogits, excluded: Mask | None = None
) -> list[Decisions]:
    """Count the decisions at a few thresholds alone, which is faster than `count`.

    thresholds: (tags, thresholds); excluded: (images,)
    Returns the counts at each threshold, (tags,).
    """

    def count_block(block: TagBlock) -> list[Any]:
        if excluded is not None:
            block.scores[:, excluded] = UNKNOWN
        tables = []
        for place in range(len(block.scores)):
            scores, rows = block[place]
            reached = scores >= thresholds[block.tags.start + place][:, None]
            true, predicted = (np.count_nonzero(r, axis=1) for r in (reached[:, rows], reached))
            totals = np.full_like(true, len(rows)), np.full_like(true, np.count_nonzero(scores))
            tables.append((true, predicted, *totals))
        return tables

    tables = np.array([tag for block in store.map_tag_blocks(count_block) for tag in block])
    return [Decisions(*tables[:, :, index].T) for index in range(thresholds.shape[1])]


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
    seen, positive_seen = seen.astype(np.intp), positive_seen.astype(np.intp)
    steps, break_even = count_steps(seen, images, positive_seen, positives)
    pool.pairs[seen] += images
    pool.positives[positive_seen] += positives
    p, positive_p = probability_table()[seen], probability_table()[positive_seen]
    nats = softplus_table()[seen], logit_table()[positive_seen]
    bins, positive_bins = _bin_of()[seen], _bin_of()[positive_seen]
    return _TagCounts(
        steps.narrowed(),
        break_even,
        CalibrationBins(
            np.bincount(bins, images, BINS),
            np.bincount(bins, images * p, BINS),
            np.bincount(positive_bins, positives, BINS),
        ),
        support=int(positives.sum()),
        labelled=int(images.sum()),
        true_positives_at=_count_from(positive_seen, positives, thresholds),
        predicted_at=_count_from(seen, images, thresholds),
        squared_error=float((images * p**2).sum() + (positives * (1 - 2 * positive_p)).sum()),
        cross_entropy=float((images * nats[0]).sum() - (positives * nats[1]).sum()),
    )


@cache
def _bin_of() -> Ints:
    edges = np.linspace(0, 1, BINS + 1)
    return np.clip(np.searchsorted(edges, probability_table(), side="right") - 1, 0, BINS - 1)


def _count_from(scores: QuantizedLogits, counts: Ints, thresholds: QuantizedLogits) -> Ints:
    """Return how many of some counted scores, rising, reach each threshold, (thresholds,)."""
    from_top = np.append(np.cumsum(counts[::-1])[::-1], 0)
    return np.asarray(from_top[np.searchsorted(scores, thresholds)])


def _combine(
    images: int, tags: Sequence[_TagCounts], pools: Histogram, pool_of: Ints
) -> ScoreCounts:
    steps, break_even, bins, *columns = zip(*tags, strict=True)
    numbers: Iterator[Any] = map(np.array, columns)
    return ScoreCounts(
        images,
        pools,
        pool_of,
        np.cumsum([0, *(len(tag.scores) for tag in steps)]),
        Steps(*_join_fields(steps, np.concatenate)),
        BreakEven(*_join_fields(break_even, np.concatenate)),
        CalibrationBins(*_join_fields(bins, np.stack)),
        *numbers,
    )


def _join_fields(
    rows: Sequence[Sequence[Any]], join: Callable[[Sequence[Any]], Any]
) -> Iterator[Any]:
    return map(join, zip(*rows, strict=True))


def evaluation_thresholds(thresholds: Floats) -> QuantizedLogits:
    """Return each tag's threshold and CURVE_THRESHOLDS, quantized, (tags, 1 + curve).

    thresholds: (tags,)
    """
    curve = quantized_logits.quantize_thresholds(CURVE_THRESHOLDS)
    curves = np.broadcast_to(curve, (len(thresholds), len(curve)))
    return np.column_stack([quantized_logits.quantize_thresholds(thresholds), curves])
