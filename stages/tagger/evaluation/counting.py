"""Count how often each score occurs with a tag and without: one loop over a block of columns.

Twice the same, compiled for many predictions and in NumPy for few, which compiling would hold up.
Both fill `Found`; everything else is worked out from it.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from tagger.evaluation import quantized_logits
from tagger.evaluation.quantized_logits import Codes, Floats
from tagger.system.jit import compiled

Ints = npt.NDArray[np.int64]
Counts = npt.NDArray[np.integer[Any]]  # of pictures

BINS = 15  # of probability, equally wide, by which calibration is judged
_INTERPRETED = 600_000  # predictions for which compiling does not pay


class Found(NamedTuple):
    """What is counted in a block of columns. A step is a distinct score of a tag's positives."""

    starts: Ints  # (tags + 1,), from which place on each tag may have steps
    steps: Ints  # (tags,), how many it has
    codes: Codes  # (positives,), falling for each tag
    below: Codes  # (positives,), the next lower score of any picture, or UNKNOWN
    true: Counts  # (positives,), positives with at least this score
    given: Counts  # (positives,), pictures with at least this score
    known: Ints  # (tags,), pictures
    even: Codes  # (tags, 2), the lowest score that gives no more than there are, and that below
    marked: Ints  # (tags, marks, 2), pictures and positives with at least the code of each mark
    sums: Floats  # (tags, 2), of squared errors and of losses in nats
    reliability: Floats  # (tags, BINS, 3), pictures, probabilities, positives by probability
    pools: Ints  # (pools, 2, codes.COUNT), how often each score occurs, and with a tag


def empty(starts: Ints, marks: int, pools: int) -> Found:
    tags, positives = len(starts) - 1, int(starts[-1])
    return Found(
        starts=starts,
        steps=np.zeros(tags, np.int64),
        codes=np.zeros(positives, np.uint16),
        below=np.zeros(positives, np.uint16),
        true=np.zeros(positives, np.int32),
        given=np.zeros(positives, np.int32),
        known=np.zeros(tags, np.int64),
        even=np.zeros((tags, 2), np.uint16),
        marked=np.zeros((tags, marks, 2), np.int64),
        sums=np.zeros((tags, 2)),
        reliability=np.zeros((tags, BINS, 3)),
        pools=np.zeros((pools, 2, quantized_logits.COUNT), np.int64),
    )


def count(
    scores: Codes, starts: Ints, rows: Ints, marks: Codes, pool_of: Ints, pools: int
) -> Found:
    """Count a block of columns.

    scores: (tags, pictures)
    starts, rows: (tags + 1,) and (positives,), which pictures have each tag
    marks: (tags, marks), falling for each tag
    pool_of: (tags,), below `pools`
    """
    found = empty(starts, marks.shape[1], pools)
    tables = (
        _bin_of(),
        quantized_logits.probabilities(),
        quantized_logits.softplus(),
        quantized_logits.logits(),
    )
    function = _loop if scores.size <= _INTERPRETED else compiled(_compiled)
    function(scores, rows, marks, pool_of, tables, found)
    return found


def _bin_of() -> Ints:
    edges = np.linspace(0, 1, BINS + 1)
    return np.clip(
        np.searchsorted(edges, quantized_logits.probabilities(), side="right") - 1, 0, BINS - 1
    )


Tables = tuple[Ints, Floats, Floats, Floats]


def _loop(
    scores: Codes,
    rows: Ints,
    marks: Codes,
    pool_of: Ints,
    tables: Tables,
    found: Found,
) -> None:
    for tag in range(len(scores)):
        own = scores[tag, rows[found.starts[tag] : found.starts[tag + 1]]]
        _column(scores[tag], own, marks[tag], pool_of[tag], tables, found, tag)


def _column(
    column: Codes,
    own: Codes,  # those of the positives
    marks: Codes,
    pool: np.int64,
    tables: Tables,
    found: Found,
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
    found.steps[tag], found.known[tag] = len(steps), known
    found.codes[inside] = steps[::-1]
    found.below[inside] = np.where(at > 0, seen[at - 1], quantized_logits.UNKNOWN)[::-1]
    found.true[inside], found.given[inside] = true_from_top[::-1], from_top[at][::-1]
    if support:
        even = int(np.searchsorted(-from_top, -support))
        found.even[tag] = seen[even] if even < len(seen) else seen[-1] + 1, 0
        found.even[tag, 1] = seen[even - 1] if even else quantized_logits.UNKNOWN
    for which, (some, counts) in enumerate(((seen, from_top), (steps, true_from_top))):
        padded = np.append(counts, 0)
        found.marked[tag, :, which] = padded[np.searchsorted(some, marks)]
    p = probabilities[seen]
    found.sums[tag, 0] = (times * p**2).sum() + (positives * (1 - 2 * probabilities[steps])).sum()
    found.sums[tag, 1] = (times * softplus[seen]).sum() - (positives * logits[steps]).sum()
    for which, (some, weights) in enumerate(((seen, times), (seen, times * p), (steps, positives))):
        found.reliability[tag, :, which] = np.bincount(bins[some], weights, BINS)
    found.pools[pool, 0, seen] += times
    found.pools[pool, 1, steps] += positives


def _compiled(
    scores: Codes,
    rows: Ints,
    marks: Codes,
    pool_of: Ints,
    tables: Tables,
    found: Found,
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
    tag: int, support: int, times: Counts, positives: Counts, marks: Codes, found: Found
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
        mark = _answer(found.marked[tag], marks, mark, code, given, true)
        if was_step:
            found.below[step - 1] = code
        if given <= support < given + seen:
            found.even[tag, 0] = above if above else code + 1
            found.even[tag, 1] = code
        given += int(seen)
        was_step = positives[code] > 0
        if was_step:
            true += int(positives[code])
            found.codes[step] = code
            found.true[step] = true
            found.given[step] = given
            step += 1
        above = code
    _answer(found.marked[tag], marks, mark, 0, given, true)
    if support == given:
        found.even[tag, 0] = above
    if support == 0:
        found.even[tag] = 0
    found.steps[tag] = step - found.starts[tag]
    found.known[tag] = given


@register_jitable
def _answer(marked: Ints, marks: Codes, mark: int, code: int, given: int, true: int) -> int:
    """Note what is above the marks that are above a score; return the first that is not."""
    while mark < len(marks) and marks[mark] > code:
        marked[mark, 0] = given
        marked[mark, 1] = true
        mark += 1
    return mark


@register_jitable
def _measure(
    tag: int, code: int, seen: int, has: int, pool: int, tables: Tables, found: Found
) -> None:
    """Add how far the probability of a score is from the truth."""
    bins, probabilities, softplus, logits = tables
    p = probabilities[code]
    found.sums[tag, 0] += seen * p * p + has * (1 - 2 * p)
    found.sums[tag, 1] += seen * softplus[code] - has * logits[code]
    found.reliability[tag, bins[code], 0] += seen
    found.reliability[tag, bins[code], 1] += seen * p
    found.reliability[tag, bins[code], 2] += has
    found.pools[pool, 0, code] += seen
    found.pools[pool, 1, code] += has
