"""How much each image moves each metric: the intervals of `bootstrap` follow from it.

The derivative of a metric by the weight of an image (the infinitesimal jackknife, Efron 1982,
https://doi.org/10.1137/1.9781611970319, chapter 6) needs one pass over the predictions, however
often the images are resampled. It is near enough for everything but the average precision of tags
on few images. Their scores are kept, to be reweighted in each resample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tagger.core.arrays import Floats, Ints
from tagger.core.vocabulary import Tag
from tagger.evaluation import quantized_logits, tag_metrics
from tagger.evaluation.prediction_store import PredictionStore, TagBlock
from tagger.evaluation.quantized_logits import LEVELS, QuantizedLogits
from tagger.evaluation.score_counts import Histogram, ScoreCounts
from tagger.evaluation.steps import ImageCounts

RARE_SUPPORT = 50  # positives; the scores of tags with fewer are kept
_MAX_FALSE_RATIO = 10  # false positives for each true one; beyond, the false are not weighed
_MIN_FALSE = 100  # which are weighed in any case


class RareTag(NamedTuple):
    """The scores of a tag on few images, as far as they decide its average precision."""

    category: int  # number
    positive_groups: Ints  # (positives,), by falling score
    last: Ints  # (steps,), the last of these with each score
    negative_groups: Ints  # (weighed,), of images without the tag, by falling score
    above: Ints  # (steps,), how many of these have at least each score
    unweighed: Ints  # (steps,), how many further images without the tag have


class Contributions(NamedTuple):
    """What each image or group adds to counts, and derivatives of metrics by its weight.

    (categories, images or groups). Derivatives of macro metrics are those of the sum over tags,
    of the macro AP over tags that are not rare.
    """

    macro_ap: Floats
    macro_f1: Floats
    true_positives: Floats
    decisions: Floats  # predicted tags plus true tags
    micro_ap: Floats  # (categories + 1, ...), the last over all tags


@dataclass(frozen=True)
class Jackknife:
    categories: Sequence[str]
    supported: Ints  # (categories,), tags with a positive
    frequent_tags: Ints  # (categories,), tags that are not rare
    frequent_ap: Floats  # (categories,), the sum of their AP
    rare: Sequence[RareTag]
    contributions: Contributions  # of each group
    metrics: Sequence[tag_metrics.MetricTree]  # (categories + 1,), the last over all tags

    @property
    def groups(self) -> int:
        return int(self.contributions.micro_ap.shape[1])


def compute(
    store: PredictionStore, counts: ScoreCounts, tags: Sequence[Tag], thresholds: Floats
) -> Jackknife:
    """Return the jackknife values of the groups of images.

    counts: their first counted threshold must be the one in `thresholds`, (tags,)
    """
    names = [name for name, _ in tag_metrics.by_category(tags)]
    masks = [inside for _, inside in tag_metrics.by_category(tags)]
    everything = np.ones(len(tags), np.bool_)
    category_of = np.argmax([*masks, everything], axis=0)
    pools = [Slopes.of_pool(counts.pooled(inside)) for inside in (*masks, everything)]
    total = _no_contributions(len(names), len(store))
    rare: list[RareTag] = []
    lowest = quantized_logits.quantize_thresholds(thresholds)
    differentiate = _Differentiation(counts, category_of, lowest, pools, store.groups)
    for categories, contributions, block_rare in store.map_tag_blocks(differentiate):
        for name in ("macro_ap", "macro_f1", "true_positives", "decisions", "micro_ap"):
            added = getattr(contributions, name)
            getattr(total, name)[categories] += added[: len(categories)]
        total.micro_ap[-1] += contributions.micro_ap[-1]
        rare += block_rare
    frequent = [inside & (counts.support >= RARE_SUPPORT) for inside in masks]
    return Jackknife(
        categories=names,
        supported=np.array([(inside & (counts.support > 0)).sum() for inside in masks], np.int64),
        frequent_tags=np.array([inside.sum() for inside in frequent], np.int64),
        frequent_ap=np.array([counts.average_precision[inside].sum() for inside in frequent]),
        rare=rare,
        contributions=Contributions(*(_sum_groups(rows, store.groups) for rows in total)),
        metrics=[tag_metrics.aggregate(counts, inside) for inside in (*masks, everything)],
    )


def _no_contributions(categories: int, images: int) -> Contributions:
    rows = (categories,) * 4 + (categories + 1,)
    return Contributions(*(np.zeros((count, images)) for count in rows))


def _sum_groups(values: Floats, groups: Ints) -> Floats:
    """Return the sums over the images of each group, (rows, groups)."""
    count = int(groups.max(initial=-1)) + 1
    sums = [np.bincount(groups, row, count) for row in values]
    return np.array(sums, np.float64).reshape(len(values), count)


class Slopes(NamedTuple):
    """Derivatives of an average precision by the weight of an image, for each score, (LEVELS,)."""

    image: Floats  # of each image
    positive: Floats  # what an image with the tag adds

    @classmethod
    def of_steps(
        cls, scores: QuantizedLogits, true_positives: ImageCounts, predicted: ImageCounts
    ) -> "Slopes":
        """Differentiate the average precision of steps, as `score_counts.Steps` has them."""
        image, positive = np.zeros((2, LEVELS))
        if len(scores):
            support = true_positives[-1]
            gained = np.diff(true_positives, prepend=0)
            precision = true_positives / predicted
            by_true = np.cumsum((gained / predicted)[::-1])[::-1] / support
            by_predicted = np.cumsum((gained * precision / predicted)[::-1])[::-1] / support
            edges = np.concatenate([[LEVELS], scores.astype(np.int64)])
            image[scores[-1] :] = np.repeat(-by_predicted, -np.diff(edges))[::-1]
            average = (gained * precision).sum() / support
            positive[scores] = (precision - average) / support + by_true
        return cls(image, positive)

    @classmethod
    def of_pool(cls, pooled: Histogram) -> "Slopes":
        """Differentiate the average precision of a histogram, (LEVELS,)."""
        scores = np.flatnonzero(pooled.positives)[::-1].astype(np.uint16)
        place = LEVELS - 1 - scores.astype(int)
        predicted, true = (np.cumsum(counts[::-1])[place] for counts in pooled)
        return cls.of_steps(scores, true, predicted)

    def add_to(self, values: Floats, scores: QuantizedLogits, rows: Ints) -> None:
        """Add to each image, (images,); rows: images that have the tag."""
        values += self.image[scores]
        values[rows] += self.positive[scores[rows]]


@dataclass(frozen=True)
class _Differentiation:
    """Differentiates the metrics of a block of tags."""

    counts: ScoreCounts
    category_of: Ints  # (tags,)
    lowest: QuantizedLogits  # (tags,), the lowest predicted score
    pools: Sequence[Slopes]  # (categories + 1,)
    groups: Ints  # (images,)

    def __call__(self, block: TagBlock) -> tuple[Ints, Contributions, list[RareTag]]:
        """Return categories, what the block adds to each, and its rare tags."""
        categories, local = np.unique(self.category_of[block.tags], return_inverse=True)
        sums = _no_contributions(len(categories), block.scores.shape[1])
        rare = []
        for place, row in enumerate(local.tolist()):
            tag = block.tags.start + place
            scores, rows = block[place]
            self.pools[categories[row]].add_to(sums.micro_ap[row], scores, rows)
            self.pools[-1].add_to(sums.micro_ap[-1], scores, rows)
            self._add_decisions(tag, scores, rows, sums, row)
            if 0 < len(rows) < RARE_SUPPORT:
                rare.append(self._rare_tag(tag, scores, rows))
            elif len(rows):
                steps = self.counts.steps_of(tag)
                slopes = Slopes.of_steps(steps.scores, steps.true_positives, steps.predicted)
                slopes.add_to(sums.macro_ap[row], scores, rows)
        return categories, sums, rare

    def _add_decisions(
        self, tag: int, scores: QuantizedLogits, rows: Ints, sums: Contributions, row: int
    ) -> None:
        """Add to the counts of decisions, and to the derivative of the sum of F1."""
        predicted = scores >= self.lowest[tag]
        correct = rows[predicted[rows]]
        sums.true_positives[row, correct] += 1
        sums.decisions[row] += predicted
        sums.decisions[row, rows] += 1
        decisions = predicted.sum() + len(rows)
        if len(rows):
            slope = 2 * len(correct) / decisions**2
            sums.macro_f1[row] -= slope * predicted
            sums.macro_f1[row, rows] -= slope
            sums.macro_f1[row, correct] += 2 / decisions

    def _rare_tag(self, tag: int, scores: QuantizedLogits, rows: Ints) -> RareTag:
        steps = self.counts.steps_of(tag)
        false = (steps.predicted - steps.true_positives).astype(np.int64)
        weighable = np.maximum(_MIN_FALSE, _MAX_FALSE_RATIO * steps.true_positives)
        within = np.flatnonzero(false <= weighable)
        weighed = np.empty(0, np.int64)
        if len(within):
            high = scores >= steps.scores[within[-1]]
            high[rows] = False
            weighed = np.flatnonzero(high)
            weighed = weighed[np.argsort(scores[weighed])[::-1]]
        above = np.minimum(false, len(weighed))
        return RareTag(
            category=int(self.category_of[tag]),
            positive_groups=self.groups[rows[np.argsort(scores[rows])[::-1]]],
            last=steps.true_positives.astype(np.int64) - 1,
            negative_groups=self.groups[weighed],
            above=above,
            unweighed=false - above,
        )
