"""Temperatures divide logits, so that a probability says how often its tag is there.

Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2. `evaluate` fits them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tagger.core import files
from tagger.core.arrays import Floats
from tagger.core.errors import TaggerError
from tagger.core.logits import Numbers, logit, sigmoid
from tagger.core.thresholds import ALL
from tagger.core.vocabulary import CATEGORIES, Tag

Temperatures = Mapping[str, float]  # of each category, and of ALL


def per_tag(
    temperatures: Temperatures, tags: Sequence[Tag], kind: Literal["global", "category"]
) -> Floats:
    """Return the temperature of each tag, (tags,)."""
    keys = [ALL if kind == "global" else CATEGORIES[tag.category] for tag in tags]
    missing = [key for key in keys if key not in temperatures]
    if missing:
        raise TaggerError(f"The temperatures name no category {missing[0]!r}. Evaluate again.")
    return np.array([temperatures[key] for key in keys])


def calibrate(probabilities: Numbers, temperatures: Floats | float) -> Floats:
    """Return probabilities, (..., tags), or thresholds of them, at the temperatures, (tags,)."""
    return sigmoid(logit(probabilities) / temperatures)


def write(temperatures: Temperatures, path: Path) -> None:
    files.write_json(path, {"temperatures": dict(temperatures)})


def read(path: Path) -> Temperatures:
    """Return what `write` wrote. Raises TaggerError for a file of another form."""
    content: Any = files.read_json(path)
    try:
        temperatures = {str(name): float(value) for name, value in content["temperatures"].items()}
        if not all(0 < value < np.inf for value in temperatures.values()):
            raise ValueError("a temperature that is not above 0")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TaggerError(f"{path} holds no temperatures ({error}). Evaluate again.") from None
    return temperatures
