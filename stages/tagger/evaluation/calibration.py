"""Temperatures: by what to divide logits, so that probabilities say how often a tag is there.

Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2. Fitted on the validation part, by
the least binary cross-entropy; the order of scores stays, and so does every figure but calibration.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.optimize import brentq

from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.core.thresholds import ALL
from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.evaluation import quantized_logits, tag_metrics
from tagger.evaluation.counting import Ints
from tagger.evaluation.quantized_logits import Floats, Numbers
from tagger.evaluation.score_counts import ScoreCounts

Kind = Literal["global", "category"]
Temperatures = Mapping[str, float]  # of each category, and of ALL

_LIMITS = (0.2, 5.0)  # where scores part all tags rightly, ever lower ones would do better
_DIGITS = 6


def fit(tally: ScoreCounts, tags: Sequence[Tag]) -> Temperatures:
    """Return the temperature over all tags and of each category.

    A category whose pairs of picture and tag are all true, or all false, has that over all.
    """
    everything = np.ones(len(tags), np.bool_)
    overall = _best(tally.pooled(everything)) or 1.0
    found = {ALL: overall}
    for name, inside in tag_metrics.by_category(tags):
        found[name] = _best(tally.pooled(inside)) or overall
    return {name: round(value, _DIGITS) for name, value in found.items()}


def _best(pooled: Ints) -> float | None:
    """Return the best temperature for counts by score, (2, codes.COUNT), None where any would do.

    The slope of the loss by the inverse of the temperature rises: its root is looked for.
    """
    seen = np.flatnonzero(pooled[0])
    times, positives = pooled[:, seen]
    logits = quantized_logits.logit_table()[seen]
    if not 0 < positives.sum() < times.sum():
        return None

    def slope(inverse: float) -> float:
        return float(
            (logits * (times * quantized_logits.sigmoid(inverse * logits) - positives)).sum()
        )

    coldest, hottest = _LIMITS
    if slope(1 / coldest) <= 0:
        return coldest
    if slope(1 / hottest) >= 0:
        return hottest
    return 1 / float(brentq(slope, 1 / hottest, 1 / coldest, xtol=1e-9))


def per_tag(temperatures: Temperatures, tags: Sequence[Tag], kind: Kind) -> Floats:
    """Return the temperature of each tag, (tags,)."""
    keys = [ALL if kind == "global" else CATEGORIES[tag.category] for tag in tags]
    missing = [key for key in keys if key not in temperatures]
    if missing:
        raise TaggerError(f"The temperatures name no category {missing[0]!r}. Evaluate again.")
    return np.array([temperatures[key] for key in keys])


def calibrated(probabilities: Numbers, temperatures: Floats | float) -> Floats:
    """Return probabilities, (..., tags), or thresholds of them, at the temperatures, (tags,)."""
    return quantized_logits.sigmoid(quantized_logits.logit(probabilities) / temperatures)


def write(temperatures: Temperatures, path: Path) -> None:
    files.write_json(path, {"temperatures": dict(temperatures)})


def read(path: Path) -> Temperatures:
    """Return what `write` left. Raises TaggerError for a file of another form."""
    content: Any = files.read_json(path)
    try:
        found = {str(name): float(value) for name, value in content["temperatures"].items()}
        if not all(0 < value < np.inf for value in found.values()):
            raise ValueError("a temperature that is not above 0")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TaggerError(f"{path} holds no temperatures ({error}). Evaluate again.") from None
    return found
