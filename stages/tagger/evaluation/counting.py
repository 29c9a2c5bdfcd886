"""Count how often each score occurs with a tag and without: one loop over a block of columns.

Twice the same, compiled for many predictions and in NumPy for few, which compiling would hold up.
Both fill `Found`; everything else is worked out from it.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from tagger.core.arrays import Floats
from tagger.evaluation import quantized_logits
from tagger.evaluation.quantized_logits import QuantizedLogits
from tagger.system.jit import compiled

Ints = npt.NDArray[np.int64]
ImageCounts = npt.NDArray[np.integer[Any]]  # of pictures

BINS = 15  # of probability, equally wide, by which calibration is judged
_INTERPRETED = 600_000  # predictions for which compiling does not pay


class BlockCounts(NamedTuple):
    """What is counted in a block of columns. A step is a distinct score of a tag's positives."""

    starts: Ints  # (tags + 1,), from which place on each tag may have steps
    steps: Ints  # (tags,), how many it has
    scores: QuantizedLogits  # (positives,), falling for each tag
    next_scores: QuantizedLogits  # (positives,), the next lower score of any picture, or UNKNOWN
    true_positives: ImageCounts  # (positives,), positives with at least this score
    predicted: ImageCounts  # (positives,), pictures with at least this score
    labelled: Ints  # (tags,), pictures
    break_even: QuantizedLogits  # (tags, 2), the lowest score that gives no more than there are, and that below
    at_thresholds: (
        Ints  # (tags, marks, 2), pictures and positives with at least the code of each mark
    )
    error_sums: Floats  # (tags, 2), of squared errors and of losses in nats
    reliability: Floats  # (tags, BINS, 3), pictures, probabilities, positives by probability
    pools: Ints  # (pools, 2, codes.COUNT), how often each score occurs, and with a tag


def empty(starts: Ints, marks: int, pools: int) -> BlockCounts:
    tags, positives = len(starts) - 1, int(starts[-1])
    return BlockCounts(
        starts=starts,
        steps=np.zeros(tags, np.int64),
        scores=np.zeros(positives, np.uint16),
        next_scores=np.zeros(positives, np.uint16),
        true_positives=np.zeros(positives, np.int32),
        predicted=np.zeros(positives, np.int32),
        labelled=np.zeros(tags, np.int64),
        break_even=np.zeros((tags, 2), np.uint16),
        at_thresholds=np.zeros((tags, marks, 2), np.int64),
        error_sums=np.zeros((tags, 2)),
        reliability=np.zeros((tags, BINS, 3)),
        pools=np.zeros((pools, 2, quantized_logits.LEVELS), np.int64),
    )


def count(
    scores: QuantizedLogits,
    starts: Ints,
    rows: Ints,
    marks: QuantizedLogits,
    pool_of: Ints,
    pools: int,
) -> BlockCounts:
    """Count a block of columns.

    scores: (tags, pictures)
    starts, rows: (tags + 1,) and (positives,), which pictures have each tag
    marks: (tags, marks), falling for each tag
    pool_of: (tags,), below `pools`
    """
    found = empty(starts, marks.shape[1], pools)
    tables = (
        _bin_of(),
        quantized_logits.probability_table(),
        quantized_logits.softplus_table(),
        quantized_logits.logit_table(),
    )
    function = _loop if scores.size <= _INTERPRETED else compiled(_compiled)
    function(scores, rows, marks, pool_of, tables, found)
    return found


def _bin_of() -> Ints:
    edges = np.linspace(0, 1, BINS + 1)
    return np.clip(
        np.searchsorted(edges, quantized_logits.probability_table(), side="right") - 1, 0, BINS - 1
    )


Tables = tuple[Ints, Floats, Floats, Floats]


def _loop(
    scores: QuantizedLogits,
    rows: Ints,
    marks: QuantizedLogits,
    pool_of: Ints,
    tables: Tables,
    found: BlockCounts,
) -> None:
    for tag in range(len(scores)):
        own = scores[tag, rows[found.starts[tag] : found.starts[tag + 1]]]
        _column(scores[tag], own, marks[tag], pool_of[tag], tables, found, tag)


def _column(
    column: QuantizedLogits,
    own: QuantizedLogits,  # those of the positives
    marks: QuantizedLogits,
    pool: np.int64,
    tables: Tables,
    found: BlockCounts,
    tag: int,
) -> None:
    bins, probabilities, softplus, logits = tables
    seen, times = np.unique(column[column != quantized_logits.UNKNOWN], return_counts=True)
    steps, positives = np.unique(own[own != quantized_logits.UNKNOWN], return_counts=True)
    from_top = np.cumsum(times[::-1])[::-1]  # pictures with at least each score seen
    true_from_top = np.cumsum(positives[::-1])[::-1]
    support, known = int(positives.sum()), int(times.sum())
    at = np.searchsorted(seen, steps)
    first = int(found.starts[tag])
    inside = slice(first, first + len(steps))
    found.steps[tag], found.labelled[tag] = len(steps), known
    found.scores[inside] = steps[::-1]
    found.next_scores[inside] = np.where(at > 0, seen[at - 1], quantized_logits.UNKNOWN)[::-1]
    found.true_positives[inside], found.predicted[inside] = true_from_top[::-1], from_top[at][::-1]
    if support:
        even = int(np.searchsorted(-from_top, -support))
        found.break_even[tag] = seen[even] if even < len(seen) else seen[-1] + 1, 0
        found.break_even[tag, 1] = seen[even - 1] if even else quantized_logits.UNKNOWN
    for which, (some, counts) in enumerate(((seen, from_top), (steps, true_from_top))):
        padded = np.append(counts, 0)
        found.at_thresholds[tag, :, which] = padded[np.searchsorted(some, marks)]
    p = probabilities[seen]
    found.error_sums[tag, 0] = (times * p**2).sum() + (
        positives * (1 - 2 * probabilities[steps])
    ).sum()
    found.error_sums[tag, 1] = (times * softplus[seen]).sum() - (positives * logits[steps]).sum()
    for which, (some, weights) in enumerate(((seen, times), (seen, times * p), (steps, positives))):
        found.reliability[tag, :, which] = np.bincount(bins[some], weights, BINS)
    found.pools[pool, 0, seen] += times
    found.pools[pool, 1, steps] += positives


def _compiled(
    scores: QuantizedLogits,
    rows: Ints,
    marks: QuantizedLogits,
    pool_of: Ints,
    tables: Tables,
    found: BlockCounts,
) -> None:
    times = np.zeros(65536, np.uint32)
    positives = np.zeros(65536, np.uint32)
    for tag in range(len(scores)):
        times[:] = 0
        for picture in range(scores.shape[1]):
            times[scores[tag, picture]] += np.uint32(1)
        support = 0
        for place in range(found.starts[tag], found.starts[tag + 1]):
            code = scores[tag, rows[place]]
            if code != 0:
                positives[code] += np.uint32(1)
                support += 1
        _walk(tag, support, times, positives, marks[tag], found)
        for back in range(65535):
            code = 65535 - back
            if times[code]:
                _measure(tag, code, times[code], positives[code], pool_of[tag], tables, found)
                positives[code] = 0


@register_jitable
def _walk(
    tag: int,
    support: int,
    times: ImageCounts,
    positives: ImageCounts,
    marks: QuantizedLogits,
    found: BlockCounts,
) -> None:
    """Go down the scores of a tag, and note how many pictures and positives are above."""
    true = 0
    given = 0
    step = found.starts[tag]
    mark = 0
    above = 0  # the score seen before
    was_step = False
    for back in range(65535):
        code = 65535 - back
        seen = np.int64(times[code])
        if seen == 0:
            continue
        mark = _answer(found.at_thresholds[tag], marks, mark, code, given, true)
        if was_step:
            found.next_scores[step - 1] = code
        if given <= support < given + seen:
            found.break_even[tag, 0] = above if above else code + 1
            found.break_even[tag, 1] = code
        given += int(seen)
        was_step = positives[code] > 0
        if was_step:
            true += int(positives[code])
            found.scores[step] = code
            found.true_positives[step] = true
            found.predicted[step] = given
            step += 1
        above = code
    _answer(found.at_thresholds[tag], marks, mark, 0, given, true)
    if support == given:
        found.break_even[tag, 0] = above
    if support == 0:
        found.break_even[tag] = 0
    found.steps[tag] = step - found.starts[tag]
    found.labelled[tag] = given


@register_jitable
def _answer(
    marked: Ints, marks: QuantizedLogits, mark: int, code: int, given: int, true: int
) -> int:
    """Note what is above the marks that are above a score; return the first that is not."""
    while mark < len(marks) and marks[mark] > code:
        marked[mark, 0] = given
        marked[mark, 1] = true
        mark += 1
    return mark


@register_jitable
def _measure(
    tag: int, code: int, seen: int, has: int, pool: int, tables: Tables, found: BlockCounts
) -> None:
    """Add how far the probability of a score is from the truth."""
    bins, probabilities, softplus, logits = tables
    p = probabilities[code]
    found.error_sums[tag, 0] += seen * p * p + has * (1 - 2 * p)
    found.error_sums[tag, 1] += seen * softplus[code] - has * logits[code]
    found.reliability[tag, bins[code], 0] += seen
    found.reliability[tag, bins[code], 1] += seen * p
    found.reliability[tag, bins[code], 2] += has
    found.pools[pool, 0, code] += seen
    found.pools[pool, 1, code] += has
