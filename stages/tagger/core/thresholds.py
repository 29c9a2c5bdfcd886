"""Thresholds: the confidence from which a tag is predicted. Fitted on validation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np

from tagger.core import files
from tagger.core.arrays import Floats
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import CATEGORIES, Tag

ALL = "all"  # in the column `category`: one threshold for all tags

Kind = Literal["global", "category", "tag"]
Objective = Literal["f1", "precision_recall", "precision", "recall"]


class Threshold(NamedTuple):
    """A row of thresholds.csv."""

    category: str  # ALL if the kind is global
    name: str  # of the tag; empty unless the kind is tag
    threshold: float
    kind: Kind
    objective: Objective = "f1"
    target: float | None = None  # the precision or recall to reach
    strength: float | None = None  # of a tag's shrinkage toward its category's threshold
    support: int = 0  # positive pairs of image and tag in validation
    f1: float = 0.0
    precision: float = 0.0
    recall: float = 0.0


def per_tag(rows: Sequence[Threshold], tags: Sequence[Tag], kind: Kind) -> Floats:
    """Return the threshold of each tag, (tags,).

    Raises TaggerError if the thresholds were fitted for another vocabulary.
    """
    values = {(row.category, row.name): row.threshold for row in rows if row.kind == kind}
    keys = [_key(tag, kind) for tag in tags]
    for category, name in keys:
        if (category, name) not in values:
            subject = f"tag {name!r} ({category})" if name else f"category {category!r}"
            raise TaggerError(
                f"The thresholds are of another vocabulary: {subject} has none. Evaluate again."
            )
    surplus = sorted(values.keys() - set(keys)) if kind == "tag" else []
    if surplus:
        category, name = surplus[0]
        raise TaggerError(
            f"The thresholds are of another vocabulary: the model has no tag {name!r} "
            f"({category}). Evaluate again."
        )
    return np.array([values[key] for key in keys])


def _key(tag: Tag, kind: Kind) -> tuple[str, str]:
    category = ALL if kind == "global" else CATEGORIES[tag.category]
    return category, tag.name if kind == "tag" else ""


def check_objective(rows: Sequence[Threshold], objective: Objective, target: float | None) -> None:
    """Raise TaggerError if the thresholds were fitted for another objective."""
    for row in rows:
        if (row.objective, row.target) != (objective, target):
            fitted, expected = describe(row.objective, row.target), describe(objective, target)
            raise TaggerError(
                f"The thresholds are fitted for {fitted}, and evaluate.threshold asks for "
                f"{expected}. Evaluate again."
            )


def describe(objective: Objective, target: float | None) -> str:
    """Return an objective in words, such as `precision 0.9`."""
    words = objective.replace("f1", "best F1").replace("precision_recall", "precision = recall")
    return words if target is None else f"{words} {target:g}"


def read_category_thresholds(path: Path) -> dict[str, float]:
    """Return the threshold of each category, from our table or from that of an export."""
    try:
        rows = files.read_csv(files.require(path))
        if rows and "alpha" in rows[0]:
            return {row["name"]: float(row["threshold"]) for row in rows}
        return {row["category"]: float(row["threshold"]) for row in rows if not row["name"]}
    except (KeyError, ValueError) as error:
        raise _unreadable(path, error) from None


def write(rows: Sequence[Threshold], path: Path) -> None:
    files.write_csv(path, Threshold._fields, rows)


def read(path: Path) -> list[Threshold]:
    """Return the rows of thresholds.csv. Raises TaggerError for a file of another form."""
    try:
        return [
            Threshold(
                category=row["category"],
                name=row["name"],
                threshold=float(row["threshold"]),
                kind=cast(Kind, row["kind"]),
                objective=cast(Objective, row["objective"]),
                target=_optional_float(row["target"]),
                strength=_optional_float(row["strength"]),
                support=int(row["support"]),
                f1=float(row["f1"]),
                precision=float(row["precision"]),
                recall=float(row["recall"]),
            )
            for row in files.read_csv(files.require(path))
        ]
    except (KeyError, ValueError) as error:
        raise _unreadable(path, error) from None


def _optional_float(text: str) -> float | None:
    return float(text) if text else None


def _unreadable(path: Path, error: Exception) -> TaggerError:
    return TaggerError(f"{path} is not a table of thresholds ({error}). Evaluate again.")
