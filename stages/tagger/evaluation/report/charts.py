"""Tables and curves of an evaluation, as rows to be written, from counted scores."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tagger.core.arrays import Floats
from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.evaluation import tag_metrics
from tagger.evaluation.score_counts import CURVE_THRESHOLDS, ScoreCounts

TAG_HEADER = (
    *("name", "category", "band", "count", "support", "threshold", "ap"),
    *("f1", "precision", "recall", "mcc", "ece", "brier", "loss"),
)
CATEGORY_HEADER = ("category", "tags", "macro_ap", "micro_ap", "macro_f1", "micro_f1")
PR_HEADER = ("recall", "precision")
F1_HEADER = ("threshold", "micro_f1", "macro_f1", "precision", "recall")
RELIABILITY_HEADER = ("confidence", "true", "pairs")


def tag_rows(tally: ScoreCounts, tags: Sequence[Tag], limits: Floats) -> Iterable[Sequence[Any]]:
    """Return a row per tag under TAG_HEADER; AP is empty without a positive."""
    known = np.maximum(1, tally.labelled)
    shares = (
        *tag_metrics.decision_metrics(*tally.decisions(0)).values(),
        [tag_metrics.calibration_error(pairs) for pairs in tally.reliability],
        *(tally.error_sums / known[:, None]).T,
    )
    return zip(
        [tag.name for tag in tags],
        [CATEGORIES[tag.category] for tag in tags],
        [
            tag_metrics.BANDS[band]
            for band in tag_metrics.frequency_bands([tag.count for tag in tags])
        ],
        [tag.count for tag in tags],
        tally.support,
        limits,
        ["" if np.isnan(value) else value for value in tally.average_precision.round(6)],
        *(np.round(share, 6) for share in shares),
        strict=True,
    )


def category_rows(summary: Mapping[str, Any]) -> list[Sequence[Any]]:
    """Return a row per category under CATEGORY_HEADER, from `figures.summary`."""
    return [
        (name, *(found[key] for key in CATEGORY_HEADER[1:]))
        for name, found in summary["categories"].items()
    ]


def pr_rows(tally: ScoreCounts, points: int = 200) -> list[tuple[float, float]]:
    """Return the curve of precision over recall, all pairs of picture and tag taken together."""
    times, positives = tally.pools.sum(axis=0)[:, ::-1]
    if not positives.any():
        return []
    has = times > 0
    given, true = np.cumsum(times[has]), np.cumsum(positives[has])
    recall = true / true[-1]
    shown = np.unique(np.searchsorted(recall, np.linspace(1 / points, 1, points)))
    return list(zip(recall[shown].round(6), (true / given)[shown].round(6), strict=True))


def f1_rows(tally: ScoreCounts) -> Iterable[Sequence[float]]:
    """Return a row per threshold of GRID under F1_HEADER; macro over tags with support."""
    has = tally.support > 0
    for mark, threshold in enumerate(CURVE_THRESHOLDS, start=1):
        counts = tally.decisions(mark)
        each = tag_metrics.decision_metrics(*counts)["f1"]
        macro = each[has].mean() if has.any() else 0.0
        micro = tag_metrics.decision_metrics(*(c.sum() for c in counts))
        row = (micro["f1"], macro, micro["precision"], micro["recall"])
        yield threshold, *(round(float(share), 6) for share in row)


def reliability_rows(tally: ScoreCounts) -> Iterable[Sequence[float]]:
    """Return a row per bin of confidence that has any pair of picture and tag."""
    pairs = tally.reliability.sum(axis=0)
    for count, confidence, true in pairs[pairs[:, 0] > 0]:
        yield round(confidence / count, 6), round(true / count, 6), int(count)
