"""Tags that follow from others: taken away, or added."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tagger.core.errors import TaggerError
from tagger.inference.given import Given

Change = Callable[[Sequence[Given]], Sequence[Given]]
Implications = Mapping[str, Sequence[str]]  # all that a tag implies, over any number of steps


def read(folder: Path) -> Implications:
    """Return the implications of a folder of rules. Raises TaggerError where there are none."""
    from tagger.data.tags import rules

    found = rules.read(folder).implications
    if not found:
        raise TaggerError(
            f"{folder} holds no implications. Put tag_implications.csv there "
            "(antecedent_name,consequent_name), or name its folder with --rules."
        )
    return found


def changing(how: str | None, folder: Path, categories: Mapping[str, str]) -> Change:
    """Return what `remove` or `add` makes of given tags, or what leaves them as they are."""
    if how is None:
        return list
    implications = read(folder)
    if how == "remove":
        return partial(remove, implications=implications)
    return partial(add, implications=implications, categories=categories)


def remove(given: Sequence[Given], implications: Implications) -> list[Given]:
    """Return the tags that no other given tag implies. Of tags that imply each other, all stay."""
    said = {
        implied
        for one in given
        for implied in implications.get(one.tag, ())
        if one.tag not in implications.get(implied, ())
    }
    return [one for one in given if one.tag not in said]


def add(
    given: Sequence[Given], implications: Implications, categories: Mapping[str, str]
) -> list[Given]:
    """Return the tags and all they imply, each as sure as the surest that implies it.

    categories: by tag; a tag of which nothing is known is a general one
    """
    sure = {one.tag: one for one in given}
    for one in given:
        for tag in implications.get(one.tag, ()):
            before = sure.get(tag)
            if before is None:
                sure[tag] = Given(tag, categories.get(tag, "general"), one.confidence)
            elif before not in given and before.confidence < one.confidence:
                sure[tag] = before._replace(confidence=one.confidence)
    return sorted(sure.values(), key=lambda one: -one.confidence)
