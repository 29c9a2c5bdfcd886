"""Every score of every tag counted, from which figures and thresholds follow.

What stays in memory grows with the positives, 20 bytes each, and with the tags: half a kilobyte.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tagger.core.arrays import Floats
from tagger.evaluation import columns, counting, quantized_logits
from tagger.evaluation.columns import TagBlock
from tagger.evaluation.counting import BlockCounts, ImageCounts, Ints
from tagger.evaluation.prediction_store import PredictionStore
from tagger.evaluation.quantized_logits import QuantizedLogits

CURVE_THRESHOLDS = np.round(np.arange(0.01, 1.0, 0.01), 2)  # thresholds of the curve of F1


@dataclass(frozen=True)
class ScoreCounts:
    """As `counting.Found`, over all tags; the steps of a tag begin at its entry of `starts`."""

    images: int
    starts: Ints  # (tags + 1,)
    scores: QuantizedLogits  # (steps,)
    next_scores: QuantizedLogits  # (steps,)
    true_positives: ImageCounts  # (steps,)
    predicted: ImageCounts  # (steps,)
    labelled: Ints  # (tags,)
    break_even: QuantizedLogits  # (tags, 2)
    at_thresholds: Ints  # (tags, marks, 2)
    error_sums: Floats  # (tags, 2)
    reliability: Floats  # (tags, BINS, 3)
    pools: Ints  # (pools, 2, codes.COUNT)
    pool_of: Ints  # (tags,)

    def __len__(self) -> int:
        return len(self.labelled)

    @cached_property
    def support(self) -> Ints:
        """Positives of each tag, (tags,)."""
        has = self.starts[1:] > self.starts[:-1]
        return np.where(has, np.append(self.true_positives, 0)[self.starts[1:] - 1], 0)

    @cached_property
    def tag_of(self) -> Ints:
        """The tag of each step, (steps,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @cached_property
    def average_precision(self) -> Floats:
        """(tags,), NaN without a positive: the sum of precision times the step in recall."""
        before = np.concatenate([[0], self.true_positives[:-1]])
        before[self.starts[:-1][np.diff(self.starts) > 0]] = 0
        gained = (self.true_positives - before) * (self.true_positives / self.predicted)
        with np.errstate(invalid="ignore"):
            return np.bincount(self.tag_of, gained, len(self)) / self.support

    def decisions(self, index: int) -> tuple[Ints, Ints, Ints, Ints]:
        """Return what `figures.decisions` takes, each (tags,), by the thresholds of a mark."""
        given, true = self.at_thresholds[:, index].T
        return true, given, self.support, self.labelled

    def pooled(self, inside: npt.NDArray[np.bool_]) -> Ints:
        """Return how often each score occurs among some tags, as `pools` has it.

        inside: (tags,), all tags of each pool, or none
        """
        return np.asarray(self.pools[np.unique(self.pool_of[inside])].sum(axis=0))


def count(
    scored: PredictionStore,
    pool_of: Ints,
    *,
    thresholds: QuantizedLogits | None = None,
    excluded: npt.NDArray[np.bool_] | None = None,
) -> ScoreCounts:
    """Count all scores.

    pool_of: (tags,), numbers from 0 of the categories, or the like, to pool
    marks: (tags, marks), codes for which to count the pictures that have no lower one
    left_out: (pictures,), those not to look at
    """
    thresholds = np.empty((scored.tag_count, 0), np.uint16) if thresholds is None else thresholds
    order = np.argsort(thresholds, axis=1)[:, ::-1]
    falling = np.take_along_axis(thresholds, order, axis=1)

    def one(some: TagBlock) -> tuple[Ints, BlockCounts]:
        if excluded is not None:
            some.scores[:, excluded] = quantized_logits.UNKNOWN
        kinds, local = np.unique(pool_of[some.tags], return_inverse=True)
        rows = some.starts, some.rows
        return kinds, counting.count(some.scores, *rows, falling[some.tags], local, len(kinds))

    pools = np.zeros((int(pool_of.max(initial=-1)) + 1, 2, quantized_logits.LEVELS), np.int64)
    found: list[BlockCounts] = []
    for kinds, block in columns.map_tag_blocks(scored, one):
        pools[kinds] += block.pools
        found.append(_packed(block))
    return _joined(scored, found, pools, pool_of, order)


def _packed(block: BlockCounts) -> BlockCounts:
    """Return a block without its pools, and of the steps those that there are."""
    room = np.diff(block.starts)
    places = np.arange(len(block.scores)) - np.repeat(block.starts[:-1], room)
    there = places < np.repeat(block.steps, room)
    steps = {
        name: getattr(block, name)[there]
        for name in ("scores", "next_scores", "true_positives", "predicted")
    }
    return block._replace(pools=block.pools[:0], **steps)


def _joined(
    scored: PredictionStore, found: list[BlockCounts], pools: Ints, pool_of: Ints, order: Ints
) -> ScoreCounts:
    found = found or [counting.empty(np.zeros(1, np.int64), order.shape[1], 0)]
    together = {
        name: np.concatenate([getattr(block, name) for block in found])
        for name in (
            "scores",
            "next_scores",
            "true_positives",
            "predicted",
            "labelled",
            "break_even",
            "error_sums",
            "reliability",
        )
    }
    steps = np.concatenate([block.steps for block in found])
    marked = np.empty((len(steps), order.shape[1], 2), np.int64)
    falling = np.concatenate([block.at_thresholds for block in found])
    np.put_along_axis(marked, order[:, :, None], falling, axis=1)
    starts = np.concatenate([[0], np.cumsum(steps)])
    return ScoreCounts(
        len(scored), starts, at_thresholds=marked, pools=pools, pool_of=pool_of, **together
    )


def evaluation_thresholds(limits: Floats) -> QuantizedLogits:
    """Return what to count for the figures at each tag's threshold and for those of GRID.

    limits: (tags,)
    """
    grid = np.broadcast_to(
        quantized_logits.quantize_thresholds(CURVE_THRESHOLDS), (len(limits), len(CURVE_THRESHOLDS))
    )
    return np.column_stack([quantized_logits.quantize_thresholds(limits), grid])
