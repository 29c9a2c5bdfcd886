"""From which confidence on a tag is given, as a person asks for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from tagger.core.arrays import Floats
from tagger.core.errors import TaggerError, did_you_mean
from tagger.core.vocabulary import CATEGORIES
from tagger.models.tagger import Tagger

BEST = "best"  # each tag's own
CATEGORY: Final = "category"  # that of the tag's category, as it was fitted


@dataclass(frozen=True)
class ThresholdChoice:
    base: float | str = BEST  # BEST, CATEGORY or one for all, 0 to 1
    categories: Mapping[str, float] = field(default_factory=dict)  # where another is asked for


def parse_thresholds(text: str) -> ThresholdChoice:
    """Return what a text asks for: `0.5`, `best`, `category` or `general=0.3,character=0.8`.

    Raises ValueError, with the reason, for anything else.
    """
    if text in (BEST, CATEGORY):
        return ThresholdChoice(text)
    if "=" not in text:
        return ThresholdChoice(_share(text))
    pairs = (part.partition("=") for part in text.split(","))
    return ThresholdChoice(
        categories={parse_category(name): _share(value) for name, _, value in pairs}
    )


def parse_category(name: str) -> str:
    """Return the name of a category without spaces around it. Raises ValueError for others."""
    known = list(CATEGORIES.values())
    if name.strip() not in known:
        hint = did_you_mean(name, known) or f" There are {', '.join(known)}."
        raise ValueError(f"there is no category {name.strip()!r}.{hint}")
    return name.strip()


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is no number, nor best, category, or like general=0.3,character=0.8"
        ) from None
    if not 0 <= value <= 1:
        raise ValueError(f"{text.strip()} is not between 0 and 1")
    return value


def resolve_thresholds(limits: ThresholdChoice, tagger: Tagger) -> Floats:
    """Return the limit of each tag, (tags,). Raises TaggerError where none were fitted."""
    if limits.base == BEST:
        found = tagger.thresholds.copy()
    elif limits.base == CATEGORY:
        found = _fitted(tagger)
    else:
        found = np.full(len(tagger.tags), float(limits.base))
    for column, tag in enumerate(tagger.tags):
        found[column] = limits.categories.get(CATEGORIES[tag.category], found[column])
    return found


def _fitted(tagger: Tagger) -> Floats:
    from tagger.core import thresholds

    if not tagger.thresholds_path.is_file():
        raise TaggerError(
            f"--threshold category needs {tagger.thresholds_path}, which is missing. "
            "Give a number, or thresholds such as general=0.3,character=0.8."
        )
    of = thresholds.read_category_thresholds(tagger.thresholds_path)
    missing = [tag for tag in tagger.tags if CATEGORIES[tag.category] not in of]
    if missing:
        name = CATEGORIES[missing[0].category]
        raise TaggerError(f"{tagger.thresholds_path} names no category {name!r}. Evaluate again.")
    found = np.array([of[CATEGORIES[tag.category]] for tag in tagger.tags])
    if tagger.temperatures is None:
        return found
    from tagger.core import calibration

    return calibration.calibrate(found, tagger.temperatures)
