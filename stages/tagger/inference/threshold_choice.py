"""The thresholds that a person asks for, as thresholds of each tag."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from tagger.core.arrays import Floats
from tagger.core.errors import TaggerError, did_you_mean
from tagger.core.vocabulary import CATEGORIES
from tagger.models.tagger import Tagger

BEST = "best"  # each tag's own
CATEGORY: Final = "category"  # of the tag's category, as it was fitted


@dataclass(frozen=True)
class ThresholdChoice:
    base: float | str = BEST  # BEST, CATEGORY or one for all, 0 to 1
    categories: Mapping[str, float] = field(default_factory=dict)  # that have another one


def parse_thresholds(text: str) -> ThresholdChoice:
    """Return the choice of a text: `0.5`, `best`, `category` or `general=0.3,character=0.8`.

    Raises ValueError, with the reason, for anything else.
    """
    if text in (BEST, CATEGORY):
        return ThresholdChoice(text)
    if "=" not in text:
        return ThresholdChoice(_parse_number(text))
    pairs = (pair.partition("=") for pair in text.split(","))
    return ThresholdChoice(
        categories={parse_category(name): _parse_number(value) for name, _, value in pairs}
    )


def parse_category(name: str) -> str:
    """Return the name of a category without spaces around it. Raises ValueError for others."""
    names = list(CATEGORIES.values())
    if name.strip() not in names:
        hint = did_you_mean(name, names) or f" There are {', '.join(names)}."
        raise ValueError(f"there is no category {name.strip()!r}.{hint}")
    return name.strip()


def _parse_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is no number, nor best, category, or like general=0.3,character=0.8"
        ) from None
    if not 0 <= value <= 1:
        raise ValueError(f"{text.strip()} is not between 0 and 1")
    return value


def resolve_thresholds(choice: ThresholdChoice, tagger: Tagger) -> Floats:
    """Return the threshold of each tag, (tags,). Raises TaggerError if none were fitted."""
    if choice.base == BEST:
        thresholds = tagger.thresholds.copy()
    elif choice.base == CATEGORY:
        thresholds = _category_thresholds(tagger)
    else:
        thresholds = np.full(len(tagger.tags), float(choice.base))
    for column, tag in enumerate(tagger.tags):
        category = CATEGORIES[tag.category]
        thresholds[column] = choice.categories.get(category, thresholds[column])
    return thresholds


def _category_thresholds(tagger: Tagger) -> Floats:
    from tagger.core import thresholds

    path = tagger.thresholds_path
    if not path.is_file():
        raise TaggerError(
            f"--threshold category needs {path}, which is missing. Give a number, or thresholds "
            "such as general=0.3,character=0.8."
        )
    by_category = thresholds.read_category_thresholds(path)
    categories = [CATEGORIES[tag.category] for tag in tagger.tags]
    for category in categories:
        if category not in by_category:
            raise TaggerError(f"{path} names no category {category!r}. Evaluate again.")
    values = np.array([by_category[category] for category in categories])
    if tagger.temperatures is None:
        return values
    from tagger.core import calibration

    return calibration.calibrate(values, tagger.temperatures)
