"""The figures, tables and curves of a judged model, as rows to be written."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tagger import metrics
from tagger.metrics import Floats
from tagger.predict import Predictions
from tagger.vocabulary import CATEGORIES, Tag

TAG_HEADER = ("name", "category", "support", "ap", "f1", "precision", "recall", "threshold")
PR_HEADER = ("recall", "precision")
F1_HEADER = ("threshold", "micro_f1", "macro_f1", "precision", "recall")


def summary(judged: Predictions, tags: Sequence[Tag], limits: Floats) -> dict[str, Any]:
    """Return the figures over all tags, and under `categories` those of each category.

    limits: (tags,), the confidence from which on each tag is given
    """
    categories = {}
    for code, name in CATEGORIES.items():
        inside = np.array([tag.category == code for tag in tags])
        if inside.any():
            scores, truth = judged.scores[:, inside], judged.truth[:, inside]
            categories[name] = metrics.figures(scores, truth, limits[inside])
    overall = metrics.figures(judged.scores, judged.truth, limits)
    return overall | {"unreadable": len(judged.failures), "categories": categories}


def tag_rows(judged: Predictions, tags: Sequence[Tag], limits: Floats) -> Iterable[Sequence[Any]]:
    """Return a row per tag under TAG_HEADER; average precision is empty without support."""
    counts = metrics.count(judged.scores, judged.truth, limits)
    precisions = metrics.average_precision(judged.scores, judged.truth)
    return zip(
        [tag.name for tag in tags],
        [CATEGORIES[tag.category] for tag in tags],
        counts.support,
        ["" if np.isnan(value) else value for value in precisions.round(6)],
        counts.f1.round(6),
        counts.precision.round(6),
        counts.recall.round(6),
        limits,
        strict=True,
    )


def pr_rows(judged: Predictions, points: int = 200) -> list[tuple[float, float]]:
    """Return the curve of precision over recall, all pairs of picture and tag taken together."""
    if not judged.truth.any():
        return []
    order = np.argsort(-judged.scores, axis=None, kind="stable")
    scores = judged.scores.ravel()[order]
    given = np.append(np.flatnonzero(scores[:-1] != scores[1:]), len(scores) - 1) + 1
    true_positive = np.cumsum(judged.truth.ravel()[order])[given - 1]  # per distinct score
    recall = true_positive / true_positive[-1]
    shown = np.unique(np.searchsorted(recall, np.linspace(1 / points, 1, points)))
    precision = true_positive[shown] / given[shown]
    return list(zip(recall[shown].round(6), precision.round(6), strict=True))


def f1_rows(judged: Predictions, grid: Floats) -> Iterable[Sequence[float]]:
    """Return a row per threshold of the grid under F1_HEADER; macro over tags with support."""
    counts = metrics.sweep(judged.scores, judged.truth, grid)
    has = judged.truth.any(axis=0)
    macro = counts.f1[:, has].sum(axis=1) / max(1, has.sum())
    overall = counts.summed()
    micro = (overall.f1[:, 0], macro, overall.precision[:, 0], overall.recall[:, 0])
    return zip(grid, *(column.round(6) for column in micro), strict=True)
