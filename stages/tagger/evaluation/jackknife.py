"""How much each picture moves each figure: what intervals are worked out from.

The derivative of a figure by the weight of a picture (the infinitesimal jackknife, Efron 1982,
https://doi.org/10.1137/1.9781611970319, chapter 6) needs one pass over the predictions, however
often the pictures are drawn anew. It is near enough for everything but the average precision of
tags on few pictures, whose scores are kept, to be weighed anew each time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tagger.core.arrays import Floats
from tagger.core.vocabulary import Tag
from tagger.evaluation import columns, quantized_logits, tag_metrics
from tagger.evaluation.columns import TagBlock
from tagger.evaluation.counting import ImageCounts, Ints
from tagger.evaluation.prediction_store import PredictionStore
from tagger.evaluation.quantized_logits import QuantizedLogits
from tagger.evaluation.score_counts import ScoreCounts

RARE_SUPPORT = 50  # positives: of tags with fewer the scores are kept
_OUTNUMBERED = 10  # false positives for each true one, beyond which the false are not weighed
_FEW = 100  # which are weighed in any case
_SUMS = 4  # by category: macro AP, macro F1, true, decided


class RareTag(NamedTuple):
    """The scores of a tag on few pictures, as far as they decide its average precision."""

    category: int  # number
    own: Ints  # (positives,), groups, by falling score
    last: Ints  # (steps,), the last of these with each score
    false: Ints  # (weighed,), groups of pictures without the tag, by falling score
    above: Ints  # (steps,), how many of these have at least each score
    more: Ints  # (steps,), how many pictures without the tag have, beyond these


@dataclass(frozen=True)
class Jackknife:
    """What the pictures of each group add to counts, and derivatives of figures by their weight.

    Derivatives of macro figures are of the sum over tags, that of AP over those not rare.
    """

    categories: Sequence[str]
    supported: Ints  # (categories,), with support
    frequent: Ints  # (categories,), those that are not rare
    frequent_ap: Floats  # (categories,), the sum of their AP
    rare: Sequence[RareTag]
    macro_ap: Floats  # (categories, groups)
    macro_f1: Floats  # (categories, groups)
    true_positives: Floats  # (categories, groups), tags given rightly
    decisions: Floats  # (categories, groups), tags given, and again tags there are
    micro_ap: Floats  # (categories + 1, groups), the last over all
    metrics: Sequence[tag_metrics.MetricTree]  # (categories + 1,), as they are


def compute(
    scored: PredictionStore, tally: ScoreCounts, tags: Sequence[Tag], limits: Floats
) -> Jackknife:
    """Return the influence of the groups; the first mark of the tally must be the thresholds.

    limits: (tags,), the thresholds
    """
    names = [name for name, _ in tag_metrics.by_category(tags)]
    masks = [inside for _, inside in tag_metrics.by_category(tags)]
    everything = np.ones(len(tags), np.bool_)
    number = np.argmax([*masks, everything], axis=0)
    pools = [Slopes.of_counts(tally.pooled(inside)) for inside in (*masks, everything)]
    sums = np.zeros((len(names), _SUMS, len(scored)))
    micro = np.zeros((len(pools), len(scored)))
    rare: list[RareTag] = []
    look = _Look(tally, number, quantized_logits.quantize_thresholds(limits), pools, scored.groups)
    for own, added, pooled, overall, few in columns.map_tag_blocks(scored, look):
        sums[own] += added
        micro[own] += pooled
        micro[-1] += overall
        rare += few
    enough = [inside & (tally.support >= RARE_SUPPORT) for inside in masks]
    together = _by_group(np.concatenate([*sums, micro]), scored.groups)
    parts = together[: -len(pools)].reshape(len(names), _SUMS, -1)
    return Jackknife(
        categories=names,
        supported=np.array([(inside & (tally.support > 0)).sum() for inside in masks], np.int64),
        frequent=np.array([inside.sum() for inside in enough], np.int64),
        frequent_ap=np.array([tally.average_precision[inside].sum() for inside in enough]),
        rare=rare,
        macro_ap=parts[:, 0],
        macro_f1=parts[:, 1],
        true_positives=parts[:, 2],
        decisions=parts[:, 3],
        micro_ap=together[-len(pools) :],
        metrics=[tag_metrics.aggregate(tally, inside, 0) for inside in (*masks, everything)],
    )


def _by_group(values: Floats, groups: Ints) -> Floats:
    """Return the sums over the pictures of each group, (rows, groups)."""
    count = int(groups.max(initial=-1)) + 1
    return np.stack([np.bincount(groups, row, count) for row in values])


class Slopes(NamedTuple):
    """Derivatives of an average precision by the weight of a picture, for its score."""

    any: Floats  # (codes.COUNT,), of each picture
    own: Floats  # (codes.COUNT,), what is added for one that has the tag

    @classmethod
    def of_steps(cls, steps: QuantizedLogits, true: ImageCounts, given: ImageCounts) -> "Slopes":
        """steps: distinct scores of positives, falling; true, given: positives, pictures from it"""
        any_, own = np.zeros(quantized_logits.LEVELS), np.zeros(quantized_logits.LEVELS)
        if len(steps):
            support = true[-1]
            gained = np.diff(true, prepend=0)
            precision = true / given
            of_true = np.cumsum((gained / given)[::-1])[::-1] / support
            of_given = np.cumsum((gained * precision / given)[::-1])[::-1] / support
            edges = np.concatenate([[quantized_logits.LEVELS], steps.astype(np.int64)])
            any_[steps[-1] :] = np.repeat(-of_given, -np.diff(edges))[::-1]
            own[steps] = (precision - (gained * precision).sum() / support) / support + of_true
        return cls(any_, own)

    @classmethod
    def of_counts(cls, pooled: Ints) -> "Slopes":
        """pooled: (2, codes.COUNT), how often each score occurs, and with a tag"""
        steps = np.flatnonzero(pooled[1])[::-1].astype(np.uint16)
        given, true = np.cumsum(pooled[:, ::-1], axis=1)[
            :, quantized_logits.LEVELS - 1 - steps.astype(int)
        ]
        return cls.of_steps(steps, true, given)


@dataclass(frozen=True)
class _Look:
    """Goes through a block of columns."""

    tally: ScoreCounts
    number: Ints  # (tags,), of the category
    limits: QuantizedLogits  # (tags,)
    pools: Sequence[Slopes]  # (categories + 1,)
    groups: Ints  # (pictures,)

    def __call__(self, some: TagBlock) -> tuple[Ints, Floats, Floats, Floats, list[RareTag]]:
        own, local = np.unique(self.number[some.tags], return_inverse=True)
        pictures = some.scores.shape[1]
        sums = np.zeros((len(own), _SUMS, pictures))
        micro = np.zeros((len(own), pictures))
        overall = np.zeros(pictures)
        rare = []
        for place, row in enumerate(local.tolist()):
            tag = some.tags.start + place
            scores, rows = some[place]
            for slopes, values in ((self.pools[own[row]], micro[row]), (self.pools[-1], overall)):
                _add(slopes, scores, rows, values)
            self._decide(tag, scores, rows, sums[row, 1:])
            steps = slice(*self.tally.starts[tag : tag + 2])
            if 0 < len(rows) < RARE_SUPPORT:
                rare.append(self._rare(tag, scores, rows, steps))
            elif len(rows):
                known = (
                    self.tally.scores[steps],
                    self.tally.true_positives[steps],
                    self.tally.predicted[steps],
                )
                _add(Slopes.of_steps(*known), scores, rows, sums[row, 0])
        return own, sums, micro, overall, rare

    def _decide(self, tag: int, scores: QuantizedLogits, rows: Ints, values: Floats) -> None:
        """Add to the derivative of F1, to what is given rightly, and to what is decided."""
        given = scores >= self.limits[tag]
        right = rows[given[rows]]
        values[1, right] += 1
        values[2] += given
        values[2, rows] += 1
        decided = given.sum() + len(rows)
        if len(rows):
            slope = 2 * len(right) / decided**2
            values[0] -= slope * given
            values[0, rows] -= slope
            values[0, right] += 2 / decided

    def _rare(self, tag: int, scores: QuantizedLogits, rows: Ints, steps: slice) -> RareTag:
        own = scores[rows]
        order = np.argsort(own)[::-1]
        true, given = self.tally.true_positives[steps], self.tally.predicted[steps]
        false = (given - true).astype(np.int64)
        within = np.flatnonzero(false <= np.maximum(_FEW, _OUTNUMBERED * true))
        weighed = np.empty(0, np.int64)
        if len(within):
            high = scores >= self.tally.scores[steps][within[-1]]
            high[rows] = False
            weighed = np.flatnonzero(high)
            weighed = weighed[np.argsort(scores[weighed])[::-1]]
        above = np.minimum(false, len(weighed))
        return RareTag(
            int(self.number[tag]),
            self.groups[rows[order]],
            true.astype(np.int64) - 1,
            self.groups[weighed],
            above,
            false - above,
        )


def _add(slopes: Slopes, scores: QuantizedLogits, rows: Ints, values: Floats) -> None:
    values += slopes.any[scores]
    values[rows] += slopes.own[scores[rows]]
