"""The confidence from which on a tag is given: fitted on validation, used everywhere after."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tagger import files, metrics
from tagger.errors import TaggerError
from tagger.metrics import Counts, Floats, Scores, Truth
from tagger.vocabulary import CATEGORIES, Tag

GRID = np.round(np.arange(0.01, 1.0, 0.01), 2)
ALL = "all"  # in the column `category`: the threshold over every tag


class Threshold(NamedTuple):
    """A row of thresholds.csv. `name` is empty where it stands for more than one tag."""

    category: str
    name: str
    threshold: float
    support: int  # positive pairs of picture and tag in validation
    f1: float
    precision: float
    recall: float
    method: str


def fit(scores: Scores, truth: Truth, tags: Sequence[Tag]) -> list[Threshold]:
    """Return the thresholds of best micro F1 over all tags, and over those of each category.

    A category without a positive picture takes the threshold over all tags.
    """
    counts = metrics.sweep(scores, truth, GRID)
    categories = np.array([tag.category for tag in tags])
    rows = [_best(counts, ALL)]
    for code, name in CATEGORIES.items():
        inside = categories == code
        if inside.any():
            best = _best(Counts(*(c[:, inside] for c in counts)), name)
            rows.append(best if best.support else best._replace(threshold=rows[0].threshold))
    return rows


def _best(counts: Counts, category: str) -> Threshold:
    overall = counts.summed()
    best = int(np.argmax(overall.f1[:, 0]))
    return Threshold(
        category=category,
        name="",
        threshold=float(GRID[best]),
        support=int(overall.support[best, 0]),
        f1=round(float(overall.f1[best, 0]), 6),
        precision=round(float(overall.precision[best, 0]), 6),
        recall=round(float(overall.recall[best, 0]), 6),
        method="best_f1",
    )


def per_tag(rows: Sequence[Threshold], tags: Sequence[Tag], policy: str) -> Floats:
    """Return the threshold of each tag, (tags,), by a policy: `global` or `category`."""
    by_category = {row.category: row.threshold for row in rows if not row.name}
    keys = [ALL if policy == "global" else CATEGORIES[tag.category] for tag in tags]
    missing = [key for key in keys if key not in by_category]
    if missing:
        raise TaggerError(f"The thresholds name no category {missing[0]!r}. Evaluate again.")
    return np.array([by_category[key] for key in keys])


def write(rows: Sequence[Threshold], path: Path) -> None:
    files.write_csv(path, Threshold._fields, rows)


def read(path: Path) -> list[Threshold]:
    """Return the rows that `write` left. Raises TaggerError for a file of another form."""
    try:
        return [
            Threshold(
                category=row["category"],
                name=row["name"],
                threshold=float(row["threshold"]),
                support=int(row["support"]),
                f1=float(row["f1"]),
                precision=float(row["precision"]),
                recall=float(row["recall"]),
                method=row["method"],
            )
            for row in files.read_csv(files.require(path))
        ]
    except (KeyError, ValueError) as error:
        raise TaggerError(f"{path} is no table of thresholds ({error}). Evaluate again.") from None
