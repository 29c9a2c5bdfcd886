"""What is said of a picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tagger.inference.inputs import InputImage


class PredictedTag(NamedTuple):
    """A tag given to a picture."""

    name: str
    category: str
    confidence: float  # 0 to 1


ApplyImplications = Callable[[Sequence[PredictedTag]], Sequence[PredictedTag]]


@dataclass(frozen=True)
class Caption:
    image: InputImage
    rating: PredictedTag | None  # the likeliest one, whatever the threshold; None without ratings
    tags: Sequence[PredictedTag]  # by falling confidence
