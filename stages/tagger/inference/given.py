"""What is said of a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tagger.inference.inputs import Found


class Given(NamedTuple):
    """A tag given to a picture."""

    tag: str
    category: str
    confidence: float  # 0 to 1


@dataclass(frozen=True)
class Caption:
    found: Found
    rating: Given | None  # the likeliest one, whatever the threshold; None without ratings
    tags: Sequence[Given]  # by falling confidence
