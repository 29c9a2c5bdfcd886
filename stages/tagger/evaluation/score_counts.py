"""Every score of every tag counted, from which figures and thresholds follow.

What stays in memory grows with the positives, 20 bytes each, and with the tags: half a kilobyte.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tagger.evaluation import columns, counting, quantized_logits
from tagger.evaluation.columns import Columns
from tagger.evaluation.counting import Counts, Found, Ints
from tagger.evaluation.prediction_store import PredictionStore
from tagger.evaluation.quantized_logits import Codes, Floats

GRID = np.round(np.arange(0.01, 1.0, 0.01), 2)  # thresholds of the curve of F1


@dataclass(frozen=True)
class ScoreCounts:
    """As `counting.Found`, over all tags; the steps of a tag begin at its entry of `starts`."""

    pictures: int
    starts: Ints  # (tags + 1,)
    codes: Codes  # (steps,)
    below: Codes  # (steps,)
    true: Counts  # (steps,)
    given: Counts  # (steps,)
    known: Ints  # (tags,)
    even: Codes  # (tags, 2)
    marked: Ints  # (tags, marks, 2)
    sums: Floats  # (tags, 2)
    reliability: Floats  # (tags, BINS, 3)
    pools: Ints  # (pools, 2, codes.COUNT)
    pool_of: Ints  # (tags,)

    def __len__(self) -> int:
        return len(self.known)

    @cached_property
    def support(self) -> Ints:
        """Positives of each tag, (tags,)."""
        has = self.starts[1:] > self.starts[:-1]
        return np.where(has, np.append(self.true, 0)[self.starts[1:] - 1], 0)

    @cached_property
    def tag_of(self) -> Ints:
        """The tag of each step, (steps,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @cached_property
    def average_precision(self) -> Floats:
        """(tags,), NaN without a positive: the sum of precision times the step in recall."""
        before = np.concatenate([[0], self.true[:-1]])
        before[self.starts[:-1][np.diff(self.starts) > 0]] = 0
        gained = (self.true - before) * (self.true / self.given)
        with np.errstate(invalid="ignore"):
            return np.bincount(self.tag_of, gained, len(self)) / self.support

    def decided(self, mark: int) -> tuple[Ints, Ints, Ints, Ints]:
        """Return what `figures.decisions` takes, each (tags,), by the thresholds of a mark."""
        given, true = self.marked[:, mark].T
        return true, given, self.support, self.known

    def pooled(self, inside: npt.NDArray[np.bool_]) -> Ints:
        """Return how often each score occurs among some tags, as `pools` has it.

        inside: (tags,), all tags of each pool, or none
        """
        return np.asarray(self.pools[np.unique(self.pool_of[inside])].sum(axis=0))


def count(
    scored: PredictionStore,
    pool_of: Ints,
    *,
    marks: Codes | None = None,
    left_out: npt.NDArray[np.bool_] | None = None,
) -> ScoreCounts:
    """Count all scores.

    pool_of: (tags,), numbers from 0 of the categories, or the like, to pool
    marks: (tags, marks), codes for which to count the pictures that have no lower one
    left_out: (pictures,), those not to look at
    """
    marks = np.empty((scored.tags, 0), np.uint16) if marks is None else marks
    order = np.argsort(marks, axis=1)[:, ::-1]
    falling = np.take_along_axis(marks, order, axis=1)

    def one(some: Columns) -> tuple[Ints, Found]:
        if left_out is not None:
            some.scores[:, left_out] = quantized_logits.UNKNOWN
        kinds, local = np.unique(pool_of[some.tags], return_inverse=True)
        rows = some.starts, some.rows
        return kinds, counting.count(some.scores, *rows, falling[some.tags], local, len(kinds))

    pools = np.zeros((int(pool_of.max(initial=-1)) + 1, 2, quantized_logits.COUNT), np.int64)
    found: list[Found] = []
    for kinds, block in columns.each(scored, one):
        pools[kinds] += block.pools
        found.append(_packed(block))
    return _joined(scored, found, pools, pool_of, order)


def _packed(block: Found) -> Found:
    """Return a block without its pools, and of the steps those that there are."""
    room = np.diff(block.starts)
    places = np.arange(len(block.codes)) - np.repeat(block.starts[:-1], room)
    there = places < np.repeat(block.steps, room)
    steps = {name: getattr(block, name)[there] for name in ("codes", "below", "true", "given")}
    return block._replace(pools=block.pools[:0], **steps)


def _joined(
    scored: PredictionStore, found: list[Found], pools: Ints, pool_of: Ints, order: Ints
) -> ScoreCounts:
    found = found or [counting.empty(np.zeros(1, np.int64), order.shape[1], 0)]
    together = {
        name: np.concatenate([getattr(block, name) for block in found])
        for name in ("codes", "below", "true", "given", "known", "even", "sums", "reliability")
    }
    steps = np.concatenate([block.steps for block in found])
    marked = np.empty((len(steps), order.shape[1], 2), np.int64)
    falling = np.concatenate([block.marked for block in found])
    np.put_along_axis(marked, order[:, :, None], falling, axis=1)
    starts = np.concatenate([[0], np.cumsum(steps)])
    return ScoreCounts(len(scored), starts, marked=marked, pools=pools, pool_of=pool_of, **together)


def marks(limits: Floats) -> Codes:
    """Return what to count for the figures at each tag's threshold and for those of GRID.

    limits: (tags,)
    """
    grid = np.broadcast_to(quantized_logits.at_least(GRID), (len(limits), len(GRID)))
    return np.column_stack([quantized_logits.at_least(limits), grid])
