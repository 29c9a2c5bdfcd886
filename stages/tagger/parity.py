"""Whether an export tags as the model does."""

from typing import Any

import numpy as np

from tagger.errors import TaggerError
from tagger.metrics import Floats, Scores


def check(
    name: str, model: Scores, export: Scores, limits: Floats, tolerance: float
) -> dict[str, Any]:
    """Return how far the export's probabilities are from the model's, (pictures, tags) both.

    Raises TaggerError where a probability differs by more than the tolerance.
    """
    difference = np.abs(model - export)
    largest = float(difference.max(initial=0))
    if not largest <= tolerance:
        picture, tag = np.unravel_index(difference.argmax(), difference.shape)
        raise TaggerError(
            f"The {name} export differs from the model by {largest:.2e}, more than "
            f"export.tolerance {tolerance:.0e}: picture {picture} of the test part, tag {tag}, "
            f"{export[picture, tag]:.6f} for {model[picture, tag]:.6f}."
        )
    same = (model >= limits) == (export >= limits)
    return {"largest_difference": float(f"{largest:.3g}"), "same_decisions": float(same.mean())}
