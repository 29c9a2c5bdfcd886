"""The metrics of evaluate.json and of the tables beside it, from counted scores."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tagger.core.arrays import Floats, Ints, Mask
from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.evaluation.metrics.average_precision import average_precision
from tagger.evaluation.ranking import Ranking
from tagger.evaluation.score_counts import CalibrationBins, Histogram, ScoreCounts
from tagger.evaluation.steps import Decisions

MetricTree = dict[str, Any]

BANDS = ("head", "middle", "tail")
_HEAD, _TAIL = 0.1, 0.5  # fractions of the tags


def frequency_bands(counts: npt.ArrayLike) -> Ints:
    """Return the index in BANDS of each tag, (tags,), by its count in training.

    The head is the most frequent tenth of the tags, the tail the less frequent half.
    """
    order = np.argsort(-np.asarray(counts, np.int64), kind="stable")
    ranks = np.empty(len(order))
    ranks[order] = np.arange(len(order)) / max(1, len(order))
    return np.where(ranks < _HEAD, 0, np.where(ranks < _TAIL, 1, 2))


def pool_numbers(tags: Sequence[Tag]) -> Ints:
    """Return a number of the category and band of each tag, (tags,)."""
    codes = list(CATEGORIES)
    categories = np.array([codes.index(tag.category) for tag in tags], np.int64)
    return categories * len(BANDS) + frequency_bands([tag.count for tag in tags])


def by_category(tags: Sequence[Tag]) -> Iterator[tuple[str, Mask]]:
    """Yield each category that has a tag, by name, with its tags, (tags,)."""
    categories = np.array([tag.category for tag in tags], np.int64)
    for code, name in CATEGORIES.items():
        if (categories == code).any():
            yield name, categories == code


def summarize(counts: ScoreCounts, tags: Sequence[Tag], ranking: Ranking) -> MetricTree:
    """Return the metrics over all tags; those of each category and band are nested in them.

    The first counted threshold of each tag is the one in use.
    """
    overall = aggregate(counts, np.ones(len(tags), np.bool_)) | _ranking_means(ranking)
    categories = {name: aggregate(counts, inside) for name, inside in by_category(tags)}
    posts = np.array([tag.count for tag in tags], np.int64)
    numbers = frequency_bands(posts)
    bands = {}
    for number, name in enumerate(BANDS):
        inside = numbers == number
        if inside.any():
            extremes = [int(posts[inside].min()), int(posts[inside].max())]
            bands[name] = {"counts": extremes} | aggregate(counts, inside)
    return overall | {"categories": categories, "bands": bands}


def aggregate(counts: ScoreCounts, inside: Mask) -> MetricTree:
    """Return the metrics of some tags. Tags without a positive count in micro metrics alone."""
    supported = inside & (counts.support > 0)
    decisions = counts.decisions(0)
    each = decision_metrics(decisions)
    micro = decision_metrics(Decisions(*(values[inside].sum() for values in decisions)))
    macro = {name: _mean(values[supported]) for name, values in each.items()}
    labelled = counts.labelled[inside].sum()
    bins = CalibrationBins(*(values[inside].sum(axis=0) for values in counts.bins))
    metrics = {
        "macro_ap": _mean(counts.average_precision[supported]),
        "micro_ap": pooled_average_precision(counts.pooled(inside)),
        "macro_f1": macro["f1"],
        "micro_f1": micro["f1"],
        **{f"macro_{name}": macro[name] for name in ("precision", "recall", "mcc")},
        **{f"micro_{name}": micro[name] for name in ("precision", "recall", "mcc")},
        "ece": float(calibration_error(bins)),
        "brier": counts.squared_error[inside].sum() / max(1, labelled),
        "loss": counts.cross_entropy[inside].sum() / max(1, counts.images),
    }
    sizes = {
        "images": counts.images,
        "tags": int(supported.sum()),
        "unsupported": int((inside & ~supported).sum()),
        "unknown": int(inside.sum() * counts.images - labelled),
    }
    return {name: round(float(value), 6) for name, value in metrics.items()} | sizes


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else 0.0


def _ranking_means(ranking: Ranking) -> MetricTree:
    """Return the means over images of the ranking metrics."""
    means = {"coverage": ranking.coverage, "label_ranking_ap": ranking.label_ranking_ap}
    return {name: round(_mean(values), 6) for name, values in means.items()}


def decision_metrics(decisions: Decisions) -> dict[str, Floats]:
    """Return F1, precision, recall and Matthews correlation, 0 if one would divide by 0."""
    true, predicted, support, labelled = (np.asarray(n, np.float64) for n in decisions)
    spread = np.sqrt(predicted) * np.sqrt(support)
    spread = spread * np.sqrt(labelled - predicted) * np.sqrt(labelled - support)
    return {
        "f1": _ratio(2 * true, predicted + support),
        "precision": _ratio(true, predicted),
        "recall": _ratio(true, support),
        "mcc": _ratio(true * labelled - predicted * support, spread),
    }


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    zeros = np.zeros(np.shape(denominator))
    return np.divide(numerator, denominator, out=zeros, where=denominator > 0)


def pooled_average_precision(pooled: Histogram) -> float:
    """Return the average precision of a histogram, (LEVELS,), 0 without a positive."""
    predicted, true = (np.cumsum(counts[::-1]) for counts in pooled)
    steps = pooled.positives[::-1] > 0
    return float(np.nan_to_num(average_precision(true[steps], predicted[steps])))


def calibration_error(bins: CalibrationBins) -> Floats:
    """Return the expected calibration error of bins, (..., BINS)."""
    errors = np.abs(bins.probability - bins.positives).sum(axis=-1)
    return np.asarray(errors / np.maximum(1.0, bins.pairs.sum(axis=-1)))


def display_name(metric: str) -> str:
    """Return the name of a metric for people: macro_ap is macro AP."""
    return metric.replace("_ap", " AP").replace("_f1", " F1")
