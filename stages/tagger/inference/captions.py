"""From probabilities to what is said of a picture, and what the terminal shows of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tagger.core.arrays import Floats
from tagger.core.vocabulary import CATEGORIES, Tag, matches_glob, normalize_name
from tagger.inference.given import ApplyImplications, Caption, PredictedTag
from tagger.inference.inputs import InputImage
from tagger.inference.messages import MESSAGES
from tagger.inference.naming import TagFormat
from tagger.inference.pipeline import FloatRow


@dataclass(frozen=True)
class Captioner:
    """Chooses what to say of a picture."""

    tags: Sequence[Tag]
    thresholds: Floats  # (tags,), the confidence from which on each is given
    categories: Sequence[str] = tuple(CATEGORIES.values())
    top: int | None = None
    apply_implications: ApplyImplications = (
        list  # of what is given, before categories and number are looked at
    )
    tag_format: TagFormat = field(default_factory=TagFormat)
    exclude: Sequence[str] = ()  # globs of tags, as the model names them

    @cached_property
    def tag_names(self) -> frozenset[str]:
        """The tags that the model may give."""
        return frozenset(tag.name for tag in self.tags)

    @cached_property
    def common_threshold(self) -> float | None:
        """The limit that all tags share, None where they differ."""
        same = len(self.thresholds) and (self.thresholds == self.thresholds[0]).all()
        return float(self.thresholds[0]) if same else None

    @cached_property
    def _ratings(self) -> npt.NDArray[np.intp]:
        return np.flatnonzero([CATEGORIES[tag.category] == "rating" for tag in self.tags])

    def __call__(self, found: InputImage, probabilities: FloatRow) -> Caption:
        """Return what is said of a picture; probabilities: (tags,)."""
        columns = np.flatnonzero(probabilities >= self.thresholds)
        order = columns[np.argsort(-probabilities[columns], kind="stable")]
        given = self.apply_implications(
            [self._given(column, probabilities) for column in order.tolist()]
        )
        wanted = [self._renamed(one) for one in given if self._is_wanted(one)]
        named = [one for one in wanted if one.name]
        return Caption(found, self._rating(probabilities), named[: self.top])

    def _given(self, column: int, probabilities: FloatRow) -> PredictedTag:
        tag = self.tags[column]
        return PredictedTag(tag.name, CATEGORIES[tag.category], float(probabilities[column]))

    def _renamed(self, one: PredictedTag) -> PredictedTag:
        return one._replace(name=self.tag_format.rename(one.name))

    def _is_wanted(self, one: PredictedTag) -> bool:
        return one.category in self.categories and not self._is_excluded(one.name)

    def _is_excluded(self, tag: str) -> bool:
        return any(matches_glob(tag, normalize_name(glob)) for glob in self.exclude)

    def _rating(self, probabilities: FloatRow) -> PredictedTag | None:
        if not len(self._ratings):
            return None
        column = int(self._ratings[probabilities[self._ratings].argmax()])
        return self._renamed(self._given(column, probabilities))


def caption_text(caption: Caption, limit: float | None, lang: str, naming: TagFormat) -> str:
    """Return what the terminal shows of a picture; limit: that of all tags, if it is the same."""
    words = MESSAGES[lang]
    told = words.per_tag if limit is None else f"{limit:g}"
    lines = [words.image.format(printable(str(caption.image.file)))]
    lines.append((words.heading if caption.tags else words.nothing).format(told))
    lines += [f"{printable(naming.format(one.name))}: {one.confidence:.4f}" for one in caption.tags]
    return "\n".join(lines) + "\n"


def printable(name: str) -> str:
    """Return a name fit for a terminal, written as Python does where it has control characters."""
    return name if name.isprintable() else repr(name)[1:-1]
