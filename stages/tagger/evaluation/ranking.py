"""How well a model orders the tags of each picture, and what it loses there."""

from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from tagger.core.arrays import Floats
from tagger.evaluation import quantized_logits
from tagger.evaluation.counting import Ints
from tagger.evaluation.prediction_store import PredictionStore
from tagger.evaluation.quantized_logits import QuantizedLogits
from tagger.system.jit import compiled

_INTERPRETED = 600_000  # predictions for which compiling does not pay
_STEPS = 30  # that a picture takes in NumPy, counted as predictions
_AT_ONCE = 256  # pictures


class Ranking(NamedTuple):
    """As scikit-learn defines the first two. Tags that are unknown on a picture are left out."""

    coverage: Floats  # (pictures,), tags to go down until every true one is seen; 0 without one
    label_ranking_ap: (
        Floats  # (pictures,), label-ranking average precision; 1 without a true or false one
    )
    loss: Floats  # (pictures,), binary cross-entropy summed over tags, in nats


def rank_labels(scored: PredictionStore) -> Ranking:
    """Return the measures of each picture."""
    found = Ranking(*(np.zeros(len(scored)) for _ in Ranking._fields))
    tables = quantized_logits.softplus_table(), quantized_logits.logit_table()
    for pictures, scores in scored.tiles():
        labels = scored.labels[pictures]
        truth = np.asarray(labels.indptr, np.int64), np.asarray(labels.indices, np.int64)
        few = scores.size + _STEPS * scores.shape[1] <= _INTERPRETED
        function = _plain if few else compiled(_compiled)
        function(scores, *truth, *tables, Ranking(*(f[pictures] for f in found)))
    return found


def _plain(
    scores: QuantizedLogits,
    starts: Ints,
    tags: Ints,
    softplus: Floats,
    logits: Floats,
    found: Ranking,
) -> None:
    found.loss[:] = (softplus[scores] * (scores != quantized_logits.UNKNOWN)).sum(axis=0)
    for picture in range(scores.shape[1]):
        column = scores[:, picture]
        own = column[tags[starts[picture] : starts[picture + 1]]]
        own = np.sort(own[own != quantized_logits.UNKNOWN])
        known = np.sort(column[column != quantized_logits.UNKNOWN])
        found.loss[picture] -= logits[own].sum()
        ranks = len(known) - np.searchsorted(known, own)
        true = len(own) - np.searchsorted(own, own)
        found.coverage[picture] = ranks.max(initial=0)
        mixed = 0 < len(own) < len(known)
        found.label_ranking_ap[picture] = (true / ranks).mean() if mixed else 1


def _compiled(
    scores: QuantizedLogits,
    starts: Ints,
    tags: Ints,
    softplus: Floats,
    logits: Floats,
    found: Ranking,
) -> None:
    pictures = scores.shape[1]
    most = np.int64(1)
    for picture in range(pictures):
        most = max(most, starts[picture + 1] - starts[picture])
    own = np.zeros((_AT_ONCE, most), np.uint16)  # scores of the true tags, rising
    positives = np.zeros(_AT_ONCE, np.int64)
    lowest = np.zeros(_AT_ONCE, np.uint16)
    between = np.zeros((_AT_ONCE, most), np.int64)  # tags from each of these to the next
    known = np.zeros(_AT_ONCE, np.int64)
    for first in range(0, pictures, _AT_ONCE):
        count = min(_AT_ONCE, pictures - first)
        between[:] = 0
        known[:] = 0
        for place in range(count):
            size = _own(scores, starts, tags, first + place, own[place])
            positives[place] = size
            lowest[place] = own[place, 0] if size else 65535
            for step in range(size):
                found.loss[first + place] -= logits[own[place, step]]
        for tag in range(len(scores)):
            for place in range(count):
                code = scores[tag, first + place]
                if code == 0:
                    continue
                known[place] += 1
                found.loss[first + place] += softplus[code]
                if code >= lowest[place]:
                    step = np.searchsorted(own[place, : positives[place]], code, side="right")
                    between[place, step - 1] += 1
        for place in range(count):
            _rank(own[place], between[place], positives[place], known[place], first + place, found)


@register_jitable
def _own(
    scores: QuantizedLogits, starts: Ints, tags: Ints, picture: int, own: QuantizedLogits
) -> int:
    """Put the scores of a picture's true tags in order; return how many are known."""
    size = 0
    for place in range(starts[picture], starts[picture + 1]):
        code = scores[tags[place], picture]
        if code != 0:
            own[size] = code
            size += 1
    own[:size].sort()
    return size


@register_jitable
def _rank(
    own: QuantizedLogits, between: Ints, positives: int, known: int, picture: int, found: Ranking
) -> None:
    rank = 0
    total = 0.0
    pending = 0  # equal scores, which share the rank of the last
    for true in range(1, positives + 1):
        step = positives - true
        rank += between[step]
        pending += 1
        if step == 0 or own[step - 1] != own[step]:
            total += pending * (true / rank)
            pending = 0
    found.coverage[picture] = rank
    found.label_ranking_ap[picture] = total / positives if 0 < positives < known else 1.0
