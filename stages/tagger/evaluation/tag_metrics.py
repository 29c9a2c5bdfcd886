"""What evaluate.json and the tables beside it say, worked out from counted scores."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tagger.core.arrays import Floats
from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.evaluation.counting import Ints
from tagger.evaluation.ranking import Ranking
from tagger.evaluation.score_counts import ScoreCounts

Mask = npt.NDArray[np.bool_]  # (tags,)
MetricTree = dict[str, Any]

BANDS = ("head", "middle", "tail")
_HEAD, _TAIL = 0.1, 0.5  # shares of the tags


def frequency_bands(counts: npt.ArrayLike) -> Ints:
    """Return the band of each tag, (tags,), a number of BANDS, by its count in training.

    The head is the tenth of the tags that are most frequent, the tail the less frequent half.
    """
    order = np.argsort(-np.asarray(counts, np.int64), kind="stable")
    ranks = np.empty(len(order))
    ranks[order] = np.arange(len(order)) / max(1, len(order))
    return np.where(ranks < _HEAD, 0, np.where(ranks < _TAIL, 1, 2))


def pool_numbers(tags: Sequence[Tag]) -> Ints:
    """Return a number of the category and band of each tag, (tags,)."""
    codes_of = list(CATEGORIES)
    categories = np.array([codes_of.index(tag.category) for tag in tags], np.int64)
    return categories * len(BANDS) + frequency_bands([tag.count for tag in tags])


def summarize(
    counts: ScoreCounts, tags: Sequence[Tag], ranking: Ranking, mark: int = 0
) -> MetricTree:
    """Return the figures over all tags, under `categories` and `bands` those of each.

    mark: which of the tally's marks are the thresholds
    """
    everything = aggregate(counts, np.ones(len(tags), np.bool_), mark) | _ranked(ranking)
    categories, banded = {}, {}
    for name, inside in by_category(tags):
        categories[name] = aggregate(counts, inside, mark)
    posts = np.array([tag.count for tag in tags], np.int64)
    number = frequency_bands(posts)
    for band, name in enumerate(BANDS):
        inside = number == band
        if inside.any():
            seen = posts[inside]
            limits = {"counts": [int(seen.min()), int(seen.max())]}
            banded[name] = limits | aggregate(counts, inside, mark)
    return everything | {"categories": categories, "bands": banded}


def by_category(tags: Sequence[Tag]) -> Iterator[tuple[str, Mask]]:
    """Yield each category that has a tag, by name, with its tags, (tags,)."""
    own = np.array([tag.category for tag in tags], np.int64)
    for code, name in CATEGORIES.items():
        if (own == code).any():
            yield name, own == code


def aggregate(counts: ScoreCounts, inside: Mask, mark: int) -> MetricTree:
    """Return the figures of some tags. Those without support count in micro figures alone."""
    has = inside & (counts.support > 0)
    each = decision_metrics(*counts.decisions(mark))
    micro = decision_metrics(*(counts[inside].sum() for counts in counts.decisions(mark)))
    macro = {name: float(values[has].mean()) if has.any() else 0.0 for name, values in each.items()}
    known, pairs = counts.labelled[inside].sum(), counts.reliability[inside].sum(axis=0)
    squares, losses = counts.error_sums[inside].sum(axis=0)
    shares = {
        "macro_ap": counts.average_precision[has].mean() if has.any() else 0.0,
        "micro_ap": pooled_average_precision(counts.pooled(inside)),
        "macro_f1": macro["f1"],
        "micro_f1": micro["f1"],
        **{f"macro_{name}": macro[name] for name in ("precision", "recall", "mcc")},
        **{f"micro_{name}": micro[name] for name in ("precision", "recall", "mcc")},
        "ece": calibration_error(pairs),
        "brier": squares / max(1, known),
        "loss": losses / max(1, counts.images),
    }
    sizes = {
        "images": counts.images,
        "tags": int(has.sum()),
        "unsupported": int((inside & ~has).sum()),
        "unknown": int(inside.sum() * counts.images - known),
    }
    return {name: round(float(share), 6) for name, share in shares.items()} | sizes


def _ranked(ranking: Ranking) -> MetricTree:
    """Return the means over pictures of the measures of ranking."""
    if not len(ranking.coverage):
        return {"coverage": 0.0, "label_ranking_ap": 0.0}
    return {
        "coverage": round(float(ranking.coverage.mean()), 6),
        "label_ranking_ap": round(float(ranking.label_ranking_ap.mean()), 6),
    }


def decision_metrics(true: Any, given: Any, support: Any, known: Any) -> dict[str, Floats]:
    """Return the figures of decisions from their counts; 0 where one would divide by nothing.

    true: given rightly; given: in all; support: there are; known: pictures, or pairs
    """
    true, given, support, known = (np.asarray(n, np.float64) for n in (true, given, support, known))
    spread = np.sqrt(given) * np.sqrt(support) * np.sqrt(known - given) * np.sqrt(known - support)
    return {
        "f1": _share(2 * true, given + support),
        "precision": _share(true, given),
        "recall": _share(true, support),
        "mcc": _share(true * known - given * support, spread),
    }


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=whole > 0)


def pooled_average_precision(pooled: Ints) -> float:
    """Return the average precision of counts by score, (2, codes.COUNT), 0 without a positive."""
    times, positives = pooled[:, ::-1]
    given, true = np.cumsum(times), np.cumsum(positives)
    if not true[-1]:
        return 0.0
    has = positives > 0
    return float((positives[has] * (true[has] / given[has])).sum() / true[-1])


def calibration_error(pairs: Floats) -> float:
    """Return the expected calibration error of (BINS, 3): pairs, probabilities, positives."""
    return float(np.abs(pairs[:, 1] - pairs[:, 2]).sum() / max(1.0, pairs[:, 0].sum()))


def display_name(measure: str) -> str:
    """Return the name of a figure as a person reads it: macro_ap is macro AP."""
    return measure.replace("_ap", " AP").replace("_f1", " F1")
