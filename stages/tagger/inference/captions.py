"""From probabilities to what is said of a picture, and what the terminal shows of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tagger.core.arrays import Floats
from tagger.core.vocabulary import CATEGORIES, Tag, matches_glob, normalize_name
from tagger.inference.given import Caption, Given
from tagger.inference.implications import Change
from tagger.inference.inputs import Found
from tagger.inference.messages import WORDS
from tagger.inference.naming import Naming
from tagger.inference.pipeline import Row


@dataclass(frozen=True)
class Captioner:
    """Chooses what to say of a picture."""

    tags: Sequence[Tag]
    limits: Floats  # (tags,), the confidence from which on each is given
    categories: Sequence[str] = tuple(CATEGORIES.values())
    top: int | None = None
    change: Change = list  # of what is given, before categories and number are looked at
    naming: Naming = field(default_factory=Naming)
    exclude: Sequence[str] = ()  # globs of tags, as the model names them

    @cached_property
    def known(self) -> frozenset[str]:
        """The tags that the model may give."""
        return frozenset(tag.name for tag in self.tags)

    @cached_property
    def limit(self) -> float | None:
        """The limit that all tags share, None where they differ."""
        same = len(self.limits) and (self.limits == self.limits[0]).all()
        return float(self.limits[0]) if same else None

    @cached_property
    def _ratings(self) -> npt.NDArray[np.intp]:
        return np.flatnonzero([CATEGORIES[tag.category] == "rating" for tag in self.tags])

    def __call__(self, found: Found, probabilities: Row) -> Caption:
        """Return what is said of a picture; probabilities: (tags,)."""
        columns = np.flatnonzero(probabilities >= self.limits)
        order = columns[np.argsort(-probabilities[columns], kind="stable")]
        given = self.change([self._given(column, probabilities) for column in order.tolist()])
        wanted = [self._renamed(one) for one in given if self._is_wanted(one)]
        named = [one for one in wanted if one.tag]
        return Caption(found, self._rating(probabilities), named[: self.top])

    def _given(self, column: int, probabilities: Row) -> Given:
        tag = self.tags[column]
        return Given(tag.name, CATEGORIES[tag.category], float(probabilities[column]))

    def _renamed(self, one: Given) -> Given:
        return one._replace(tag=self.naming.replaced(one.tag))

    def _is_wanted(self, one: Given) -> bool:
        return one.category in self.categories and not self._is_excluded(one.tag)

    def _is_excluded(self, tag: str) -> bool:
        return any(matches_glob(tag, normalize_name(glob)) for glob in self.exclude)

    def _rating(self, probabilities: Row) -> Given | None:
        if not len(self._ratings):
            return None
        column = int(self._ratings[probabilities[self._ratings].argmax()])
        return self._renamed(self._given(column, probabilities))


def text(caption: Caption, limit: float | None, lang: str, naming: Naming) -> str:
    """Return what the terminal shows of a picture; limit: that of all tags, if it is the same."""
    words = WORDS[lang]
    told = words.own if limit is None else f"{limit:g}"
    lines = [words.picture.format(shown(str(caption.found.file)))]
    lines.append((words.heading if caption.tags else words.nothing).format(told))
    lines += [f"{shown(naming.written(one.tag))}: {one.confidence:.4f}" for one in caption.tags]
    return "\n".join(lines) + "\n"


def shown(name: str) -> str:
    """Return a name fit for a terminal, written as Python does where it has control characters."""
    return name if name.isprintable() else repr(name)[1:-1]
