"""From probabilities to the tags that are given to an image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tagger.core.arrays import Floats
from tagger.core.vocabulary import CATEGORIES, Tag, matches_glob, normalize_name
from tagger.inference.inputs import InputImage
from tagger.inference.pipeline import FloatRow
from tagger.inference.tag_format import TagFormat

ALL_CATEGORIES = tuple(CATEGORIES.values())


class PredictedTag(NamedTuple):
    name: str
    category: str
    confidence: float  # 0 to 1


ApplyImplications = Callable[[Sequence[PredictedTag]], Sequence[PredictedTag]]


@dataclass(frozen=True)
class Caption:
    """The tags of an image."""

    image: InputImage
    rating: PredictedTag | None  # the likeliest one, whatever the threshold; None without ratings
    tags: Sequence[PredictedTag]  # by falling confidence

    def tags_with_rating(
        self, categories: Sequence[str] = ALL_CATEGORIES
    ) -> Sequence[PredictedTag]:
        """Return the tags and the likeliest rating, by falling confidence.

        categories: the rating is added only if its category is one of these
        """
        rating = self.rating
        if rating is None or not rating.name or rating.category not in categories:
            return self.tags
        if any(tag.name == rating.name and tag.category == "rating" for tag in self.tags):
            return self.tags
        return sorted([*self.tags, rating], key=lambda tag: -tag.confidence)


@dataclass(frozen=True)
class Captioner:
    """Chooses the tags of an image."""

    tags: Sequence[Tag]  # of the model, by output
    thresholds: Floats  # (tags,), a tag is given from this confidence on
    categories: Sequence[str] = ALL_CATEGORIES
    top: int | None = None  # tags of an image at most
    apply_implications: ApplyImplications = list  # before categories, exclude and top
    tag_format: TagFormat = field(default_factory=TagFormat)
    exclude: Sequence[str] = ()  # globs of tags, as the model names them

    @cached_property
    def tag_names(self) -> frozenset[str]:
        """The tags that the model may give."""
        return frozenset(tag.name for tag in self.tags)

    @cached_property
    def common_threshold(self) -> float | None:
        """The threshold that all tags share, None if they differ."""
        same = len(self.thresholds) and (self.thresholds == self.thresholds[0]).all()
        return float(self.thresholds[0]) if same else None

    @cached_property
    def _ratings(self) -> npt.NDArray[np.intp]:
        return np.flatnonzero([CATEGORIES[tag.category] == "rating" for tag in self.tags])

    def __call__(self, image: InputImage, probabilities: FloatRow) -> Caption:
        """Return the tags of an image; probabilities: (tags,)."""
        columns = np.flatnonzero(probabilities >= self.thresholds)
        order = columns[np.argsort(-probabilities[columns], kind="stable")]
        predicted = [self._predicted_tag(column, probabilities) for column in order.tolist()]
        chosen = filter(self._is_chosen, self.apply_implications(predicted))
        named = [tag for tag in map(self._rename, chosen) if tag.name]
        return Caption(image, self._rating(probabilities), named[: self.top])

    def _predicted_tag(self, column: int, probabilities: FloatRow) -> PredictedTag:
        tag = self.tags[column]
        return PredictedTag(tag.name, CATEGORIES[tag.category], float(probabilities[column]))

    def _rename(self, tag: PredictedTag) -> PredictedTag:
        return tag._replace(name=self.tag_format.rename(tag.name))

    def _is_chosen(self, tag: PredictedTag) -> bool:
        return tag.category in self.categories and not any(
            matches_glob(tag.name, normalize_name(glob)) for glob in self.exclude
        )

    def _rating(self, probabilities: FloatRow) -> PredictedTag | None:
        if not len(self._ratings):
            return None
        column = int(self._ratings[probabilities[self._ratings].argmax()])
        return self._rename(self._predicted_tag(column, probabilities))
